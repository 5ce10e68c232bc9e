//! Volumes of CSI drivers, under the kubelet's paths.
//!
//! `plugins/kubernetes.io/csi/<driver>/<sha256 of the handle>/globalmount` is staged once per node;
//! `pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount` is published once per pod. `vol_data.json` beside each tells
//! what it is, so that it can be taken down without the API. It is written before the driver is called and removed
//! after the driver has undone its work: what the disk says may be more than there is, never less.

mod attachment;
mod client;
mod mounting;
mod record;
mod rules;
mod state;
mod sweep;
mod tokens;
mod unmounting;
mod volume;

pub(crate) use mounting::set_up;
pub(crate) use state::VolumeState;
pub(crate) use sweep::sweep_stages;
pub(crate) use unmounting::tear_down;
pub(crate) use volume::CsiVolume;

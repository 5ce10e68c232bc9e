//! Bringing a driver's volume into a pod: attached, staged, published, given to the pod's group.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orlop_agent_core::ports::{MountedVolume, PortError, VolumeError};
use orlop_kernel::mount;
use orlop_proto::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest};

use crate::csi::client::{CallError, NodeDriver};
use crate::csi::rules::{DriverRules, NodeAbilities};
use crate::csi::state::{VolumeEvent, VolumeState};
use crate::csi::volume::{CsiVolume, SecretName};
use crate::csi::{attachment, record, tokens, unmounting};
use crate::file::{blocking, make_folder};
use crate::layout::{check_name, plugin};
use crate::ownership::{self, FsGroup};
use crate::set_up::PodContext;
use crate::slots::Mounted;

/// Everything about one volume in one pod.
struct Mounting<'a> {
    pod: &'a PodContext,
    volume: &'a CsiVolume,
    /// `pods/<uid>/volumes/kubernetes.io~csi/<volume>`.
    folder: PathBuf,
    target: PathBuf,
    /// `plugins/kubernetes.io/csi/<driver>/<hash>`.
    stage: PathBuf,
    group: Option<FsGroup>,
}

/// Brings a volume into a pod; fine when it is there. `name` is the volume's in the pod.
pub(crate) async fn set_up(pod: &PodContext, name: &str, volume: &CsiVolume) -> Result<MountedVolume, VolumeError> {
    let spec_name = &volume.spec_name;
    let wrong = |message: String| VolumeError::SetUp { volume: spec_name.clone(), message };
    check_name("volume", spec_name).map_err(|error| wrong(error.to_string()))?;
    check_name("driver", &volume.driver).map_err(|error| wrong(error.to_string()))?;
    let layout = &pod.shared.layout;
    let folder = layout.volume(&pod.uid, plugin::CSI, spec_name);
    let mounting = Mounting {
        pod,
        volume,
        target: folder.join("mount"),
        folder,
        stage: layout.stage(&volume.driver, &volume.handle),
        group: FsGroup::of(&pod.pod),
    };
    let rules = mounting.rules().await.map_err(wrong)?;
    rules.check_lifecycle(volume).map_err(wrong)?;
    let attached = if rules.attach && !volume.inline {
        let _step = pod.slot.step(name, "waiting for the volume to be attached");
        let waited = tokio::select! {
            waited = attachment::wait(&pod.shared.config, volume) => waited,
            () = pod.slot.ending.cancelled() => Err("the pod is ending".to_owned()),
        };
        waited.map_err(|message| VolumeError::WaitForAttach { volume: spec_name.clone(), message })?
    } else {
        BTreeMap::new()
    };
    let abilities = {
        let _step = pod.slot.step(name, "the CSI driver stages or publishes it");
        // Others of this node must not stage or unstage it at the same time.
        let lock = pod.shared.locks.get(&volume.key());
        let _held = tokio::select! {
            held = lock.lock() => held,
            () = pod.slot.ending.cancelled() => return Err(wrong("the pod is ending".to_owned())),
        };
        mounting.mount(&rules, &attached).await?
    };
    let _step = pod.slot.step(name, "giving it to the pod's group");
    mounting.give_to_group(&rules, abilities).await.map_err(wrong)?;
    let mounted = MountedVolume { host_path: mounting.target.clone(), read_only: volume.read_only, image: None };
    let (at, known) = (mounting.target.clone(), mounted.clone());
    let is_mount = blocking(move || mount::is_mount_point(&at)).await.map_err(wrong)?;
    let (spec_name, republish) = (spec_name.clone(), rules.republish);
    pod.slot.set_mounted(name, Mounted { volume: known, spec_name, republish, is_mount });
    Ok(mounted)
}

impl Mounting<'_> {
    fn refused(&self, message: impl ToString) -> VolumeError {
        VolumeError::SetUp { volume: self.volume.spec_name.clone(), message: message.to_string() }
    }

    fn state(&self) -> VolumeState {
        self.pod.slot.state(&self.volume.spec_name)
    }

    fn happened(&self, event: VolumeEvent) {
        self.pod.slot.set_state(&self.volume.spec_name, self.state().after(event));
    }

    async fn rules(&self) -> Result<DriverRules, String> {
        match self.pod.shared.config.objects.csi_driver(&self.volume.driver).await {
            Ok(driver) => Ok(DriverRules::of(Some(&driver))),
            Err(PortError::NotFound { .. }) => Ok(DriverRules::of(None)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Stages and publishes, as far as that is not done. Returns what the driver can do, if it was asked.
    async fn mount(
        &self,
        rules: &DriverRules,
        attached: &BTreeMap<String, String>,
    ) -> Result<Option<NodeAbilities>, VolumeError> {
        let recorded = self.look().await.map_err(|message| self.refused(message))?;
        if recorded {
            self.happened(VolumeEvent::Recovered);
        }
        if self.state() == VolumeState::Published && !rules.republish {
            return Ok(None);
        }
        let config = &self.pod.shared.config;
        let driver = NodeDriver::connect(config, &self.volume.driver).await;
        let driver = driver.map_err(|error| self.not_staged(&error))?;
        let abilities = driver.abilities().await.map_err(|error| self.not_staged(&error))?;
        self.note().await.map_err(|message| self.refused(message))?;
        let stages = abilities.stages && !self.volume.inline;
        if stages && self.state() != VolumeState::Published {
            self.stage(&driver, abilities, attached).await?;
        }
        self.publish(&driver, rules, abilities, attached, stages).await?;
        Ok(Some(abilities))
    }

    /// Looks at the disk: whether an earlier run has left a record, and whether another pod has a volume that is for
    /// one pod only.
    async fn look(&self) -> Result<bool, String> {
        let (folder, pods, uid) = (self.folder.clone(), self.pod.shared.layout.pods(), self.pod.uid.clone());
        let (driver, handle) = (self.volume.driver.clone(), self.volume.handle.clone());
        let for_one = self.volume.is_for_one_pod();
        blocking(move || {
            if for_one && record::users(&pods, &driver, &handle).iter().any(|user| *user != uid) {
                return Err("volume uses the ReadWriteOncePod access mode and is already in use by another pod".into());
            }
            // A record that can't be read is written anew: it is of a volume of this name in this pod.
            Ok::<_, String>(folder.join(record::FILE).exists())
        })
        .await
    }

    /// Writes the pod's record, so that whatever happens next can be undone.
    async fn note(&self) -> Result<(), String> {
        let (folder, node) = (self.folder.clone(), self.pod.shared.config.node_name.clone());
        let data = record::VolumeData::new(self.volume, &node);
        blocking(move || {
            make_folder(&folder, 0o750).map_err(|error| error.to_string())?;
            let known = record::read(&folder).ok().flatten();
            if known.is_some_and(|known| known.is_of(&data.driver_name, &data.volume_handle)) {
                return Ok(());
            }
            record::write(&folder, &data).map_err(|error| error.to_string())
        })
        .await
    }

    fn not_staged(&self, error: &CallError) -> VolumeError {
        VolumeError::MountDevice { volume: self.volume.spec_name.clone(), message: error.to_string() }
    }

    async fn stage(
        &self,
        driver: &NodeDriver,
        abilities: NodeAbilities,
        attached: &BTreeMap<String, String>,
    ) -> Result<(), VolumeError> {
        let shared = &self.pod.shared;
        // What is known of a volume that has got lost is not believed.
        if self.state() != VolumeState::Uncertain && shared.is_staged(&self.volume.key()) {
            self.happened(VolumeEvent::Staged);
            return Ok(());
        }
        let failed = |message: String| VolumeError::MountDevice { volume: self.volume.spec_name.clone(), message };
        let secrets = self.secrets(self.volume.stage_secret.as_ref()).await.map_err(failed)?;
        let (stage, mount) = (self.stage.clone(), self.stage.join("globalmount"));
        let data = record::VolumeData::new(self.volume, &shared.config.node_name);
        blocking(move || {
            make_folder(&stage, 0o750).map_err(|error| error.to_string())?;
            if !mount::is_mount_point(&stage.join("globalmount")).unwrap_or(true) {
                make_folder(&stage.join("globalmount"), 0o750).map_err(|error| error.to_string())?;
            }
            record::write(&stage, &data).map_err(|error| error.to_string())
        })
        .await
        .map_err(failed)?;
        let request = NodeStageVolumeRequest {
            volume_id: self.volume.handle.clone(),
            publish_context: attached.clone().into_iter().collect(),
            staging_target_path: mount.display().to_string(),
            volume_capability: Some(self.volume.capability(abilities, self.group.map(|group| group.gid))),
            secrets: secrets.into_iter().collect(),
            volume_context: self.volume.attributes.clone().into_iter().collect(),
        };
        match self.call(driver.stage(request)).await {
            Ok(()) => {
                shared.set_staged(&self.volume.key(), true);
                self.happened(VolumeEvent::Staged);
                Ok(())
            }
            Err(error) => {
                self.undo_refused(&error).await;
                Err(self.not_staged(&error))
            }
        }
    }

    async fn publish(
        &self,
        driver: &NodeDriver,
        rules: &DriverRules,
        abilities: NodeAbilities,
        attached: &BTreeMap<String, String>,
        staged: bool,
    ) -> Result<(), VolumeError> {
        let failed = |message: String| self.refused(message);
        let mut secrets = self.secrets(self.volume.publish_secret.as_ref()).await.map_err(failed)?;
        let mut context = self.volume.attributes.clone();
        context.extend(rules.pod_context(&self.pod.pod, self.volume.inline));
        let tokens = tokens::collect(&self.pod.shared.config, &self.pod.pod, &rules.tokens).await.map_err(failed)?;
        if let Some(tokens) = tokens {
            let place = if rules.tokens_in_secrets { &mut secrets } else { &mut context };
            place.insert(tokens::KEY.to_owned(), tokens);
        }
        let stage = if staged { self.stage.join("globalmount").display().to_string() } else { String::new() };
        let request = NodePublishVolumeRequest {
            volume_id: self.volume.handle.clone(),
            publish_context: attached.clone().into_iter().collect(),
            staging_target_path: stage,
            target_path: self.target.display().to_string(),
            volume_capability: Some(self.volume.capability(abilities, self.group.map(|group| group.gid))),
            readonly: self.volume.read_only,
            secrets: secrets.into_iter().collect(),
            volume_context: context.into_iter().collect(),
        };
        match self.call(driver.publish(request)).await {
            Ok(()) if self.target_is_there().await => {
                self.happened(VolumeEvent::Published);
                Ok(())
            }
            Ok(()) => {
                self.happened(VolumeEvent::Unclear);
                Err(failed(format!("the driver reports success, but {} is not there", self.target.display())))
            }
            Err(error) => {
                self.undo_refused(&error).await;
                Err(failed(error.to_string()))
            }
        }
    }

    /// A call that is broken off when the pod ends; its outcome is unclear then.
    async fn call(&self, call: impl Future<Output = Result<(), CallError>>) -> Result<(), CallError> {
        let result = tokio::select! {
            result = call => result,
            () = self.pod.slot.ending.cancelled() => Err(CallError::Refused {
                call: "the call",
                code: tonic::Code::Cancelled,
                message: "the pod is ending".to_owned(),
            }),
        };
        if let Err(error) = &result {
            self.happened(if error.is_final() { VolumeEvent::Refused } else { VolumeEvent::Unclear });
        }
        result
    }

    /// Where a driver has refused for good and nothing was there before, no trace is left that would make the end of
    /// the pod depend on the driver.
    async fn undo_refused(&self, error: &CallError) {
        if !error.is_final() || self.state() != VolumeState::Unmounted {
            return;
        }
        let (folder, target, stage) = (self.folder.clone(), self.target.clone(), self.stage.clone());
        let (pods, uid) = (self.pod.shared.layout.pods(), self.pod.uid.clone());
        let (driver, handle) = (self.volume.driver.clone(), self.volume.handle.clone());
        let forgotten = blocking(move || {
            unmounting::forget(&folder, &target)?;
            if record::users(&pods, &driver, &handle).iter().all(|user| *user == uid) {
                unmounting::forget(&stage, &stage.join("globalmount"))?;
            }
            Ok::<_, String>(())
        });
        if let Err(error) = forgotten.await {
            tracing::warn!(volume = self.volume.spec_name, %error, "a record of a volume is left");
        }
    }

    async fn target_is_there(&self) -> bool {
        let target = self.target.clone();
        blocking(move || Ok::<_, String>(std::fs::symlink_metadata(&target).is_ok())).await.unwrap_or(false)
    }

    async fn secrets(&self, name: Option<&SecretName>) -> Result<BTreeMap<String, String>, String> {
        let Some((namespace, name)) = name else { return Ok(BTreeMap::new()) };
        let secret = self.pod.shared.config.objects.secret(namespace, name).await;
        let secret = secret.map_err(|error| format!("fetching secret {namespace}/{name} failed: {error}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(secret.data.iter().flatten().map(|(key, value)| (key.clone(), text(&value.0))).collect())
    }

    /// Gives the volume to the pod's group, once; drivers that do it themselves have been told the group.
    async fn give_to_group(&self, rules: &DriverRules, abilities: Option<NodeAbilities>) -> Result<(), String> {
        let Some(group) = self.group.filter(|_| rules.changes_group(self.volume)) else { return Ok(()) };
        if abilities.is_some_and(|abilities| abilities.mount_group) {
            return Ok(());
        }
        let (folder, target) = (self.folder.clone(), self.target.clone());
        blocking(move || give(&folder, &target, group)).await
    }
}

fn give(folder: &Path, target: &Path, group: FsGroup) -> Result<(), String> {
    let known = record::read(folder).ok().flatten().unwrap_or_default();
    if known.group() == Some(group.gid.to_string().as_str()) {
        return Ok(());
    }
    ownership::apply(target, group, false).map_err(|error| error.to_string())?;
    record::write(folder, &known.with_group(Some(group.gid))).map_err(|error| error.to_string())
}

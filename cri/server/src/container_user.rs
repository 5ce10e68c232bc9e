//! Who a container runs as, by the passwd and group files inside its image, which are hostile input.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use orlop_cri_spec::user::{self, ResolvedUser, UserRequest};
use orlop_image::ImageRecord;
use orlop_kernel::{mount, path};
use orlop_proto::cri;
use rustix::fs::{FileType, OFlags};

use crate::error::{RpcError, file};

/// Bytes of a passwd or group file that are read.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;

/// Works out the identity. Blocking.
pub(crate) fn resolve(config: &cri::ContainerConfig, image: &ImageRecord) -> Result<ResolvedUser, RpcError> {
    let context = crate::container_create::security(config);
    let view = mount::layers_view(&image.lower_dirs).map_err(file("look into the image", &image.id))?;
    let request = UserRequest {
        uid: context.run_as_user.map(|value| value.value),
        name: &context.run_as_username,
        gid: context.run_as_group.map(|value| value.value),
        image_user: &image.config.user,
        supplemental: &context.supplemental_groups,
        strict: context.supplemental_groups_policy == cri::SupplementalGroupsPolicy::Strict as i32,
    };
    Ok(user::resolve(&request, &read(&view, "etc/passwd"), &read(&view, "etc/group"))?)
}

/// The text of a file in the image; empty when there is none or it is no plain file.
fn read(view: &OwnedFd, name: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(found) = path::open_in_root(view, Path::new(name), flags) else { return String::new() };
    let plain =
        rustix::fs::fstat(&found).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let mut text = Vec::new();
    if !plain || std::fs::File::from(found).take(ACCOUNTS_BYTES_MAX).read_to_end(&mut text).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&text).into_owned()
}

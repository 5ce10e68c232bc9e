//! Overlays: a container's root and read-only views of an image.
//!
//! Paths may be relative to the working folder, which is how layers that are mounted for a moment only are named.

mod page;

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::{Propagation, clone_path, named, set_attributes};

/// Bytes of the value of an option, with the zero at its end.
const VALUE_BYTES_MAX: usize = 256;

/// Makes a detached overlay: layers from top to bottom, a writable layer and its work folder. `volatile` leaves out
/// the syncs that only matter over a power loss, after which the container is gone anyway.
///
/// # Errors
/// When the kernel refuses a layer.
pub fn overlay(lower: &[impl AsRef<Path>], upper: &Path, work: &Path) -> std::io::Result<OwnedFd> {
    labelled_overlay(lower, upper, work, None)
}

/// The same, all of whose files have one SELinux label where one is given.
///
/// # Errors
/// When the kernel refuses a layer or the label.
pub fn labelled_overlay(
    lower: &[impl AsRef<Path>],
    upper: &Path,
    work: &Path,
    label: Option<&str>,
) -> std::io::Result<OwnedFd> {
    if lower.is_empty() {
        // An image without layers: there is nothing to lay the writable one over.
        return clone_path(upper, false);
    }
    // What a volatile overlay leaves behind, so that nobody trusts it after a power loss. This one was never used: a
    // container that could not be made is made again.
    match std::fs::remove_dir_all(work.join("work/incompat/volatile")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let writable = Some((text(upper)?, text(work)?));
    Plan { lower: texts(lower)?, writable, label: label.map(str::to_string) }.create()
}

/// A detached read-only view of layers, from top to bottom, as a container of the image sees them.
///
/// # Errors
/// When the kernel refuses a layer.
pub fn layers_view(lower: &[impl AsRef<Path>]) -> std::io::Result<OwnedFd> {
    if let [only] = lower {
        // One layer is its own view, and overlayfs wants two.
        let view = clone_path(only.as_ref(), false)?;
        set_attributes(&view, MountAttrFlags::MOUNT_ATTR_RDONLY, Some(Propagation::Private), false)?;
        return Ok(view);
    }
    let view = Plan { lower: texts(lower)?, writable: None, label: None }.create()?;
    set_attributes(&view, MountAttrFlags::MOUNT_ATTR_RDONLY, None, false)?;
    Ok(view)
}

/// A path as an option of overlayfs.
fn text(path: &Path) -> std::io::Result<String> {
    let text = path.to_str().filter(|text| !text.contains([',', '\\', ':']));
    text.map(str::to_string)
        .ok_or_else(|| std::io::Error::other(format!("the layer path {path:?} holds one of , \\ :")))
}

fn texts(paths: &[impl AsRef<Path>]) -> std::io::Result<Vec<String>> {
    paths.iter().map(|path| text(path.as_ref())).collect()
}

/// What an overlay is made of.
struct Plan {
    /// Layers, from top to bottom.
    lower: Vec<String>,
    /// The writable layer and its work folder.
    writable: Option<(String, String)>,
    /// The SELinux label of all files.
    label: Option<String>,
}

impl Plan {
    /// The detached overlay.
    fn create(&self) -> std::io::Result<OwnedFd> {
        // Kernels before 6.5 take any name of an option, and refuse those that they don't know when all is said.
        match self.create_by(Naming::OneByOne) {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => self.create_as_before(),
            other => other,
        }
    }

    /// As kernels before 6.5 want it.
    fn create_as_before(&self) -> std::io::Result<OwnedFd> {
        let length = self.lower.iter().map(|layer| layer.len() + 1).sum::<usize>();
        if length <= VALUE_BYTES_MAX { self.create_by(Naming::Together) } else { page::create(self) }
    }

    fn create_by(&self, naming: Naming) -> std::io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |option: &str, value: &str| {
            fsconfig_set_string(&context, option, value).map_err(|errno| named("overlay", option, errno))
        };
        if let Some(label) = &self.label {
            set("context", label)?;
        }
        match naming {
            Naming::OneByOne => self.lower.iter().try_for_each(|layer| set("lowerdir+", layer))?,
            Naming::Together => set("lowerdir", &self.lower.join(":"))?,
        }
        if let Some((upper, work)) = &self.writable {
            set("upperdir", upper)?;
            set("workdir", work)?;
            fsconfig_set_flag(&context, "volatile").map_err(|errno| named("overlay", "volatile", errno))?;
        }
        fsconfig_create(&context).map_err(|errno| named("overlay", "create", errno))?;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }
}

/// How layers are named to the kernel.
enum Naming {
    /// One option for each: no limit on the length of all together (6.5 and newer).
    OneByOne,
    /// One option for all.
    Together,
}

#[cfg(test)]
mod tests {
    use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};

    use super::*;

    /// A folder that vanishes with the test.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("orlop-{name}-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn layers_may_be_many_and_have_long_names() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounts want root");
            return;
        }
        let base = Folder::new("layers");
        let layers: Vec<_> = (0..90)
            .map(|number| {
                let layer = base.0.join(format!("{}-{number}", "layer".repeat(30)));
                std::fs::create_dir(&layer).unwrap();
                std::fs::write(layer.join(format!("file-{number}")), "").unwrap();
                layer
            })
            .collect();
        let (upper, work) = (base.0.join("upper"), base.0.join("work"));
        for folder in [&upper, &work] {
            std::fs::create_dir(folder).unwrap();
        }
        for mount in [layers_view(&layers).unwrap(), overlay(&layers, &upper, &work).unwrap()] {
            for number in 0..layers.len() {
                statat(&mount, format!("file-{number}"), AtFlags::empty()).unwrap();
            }
        }
        // What is wrong with both ways is told.
        let gone = [base.0.join("gone"), layers[0].clone()];
        assert_eq!(layers_view(&gone).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn newer_and_older_kernels_get_the_same() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounts want root");
            return;
        }
        let base = Folder::new("names");
        for (number, count) in [2, 90].into_iter().enumerate() {
            let base = base.0.join(number.to_string());
            std::fs::create_dir(&base).unwrap();
            let folder = |name: String| {
                let path = base.join(name);
                std::fs::create_dir(&path).unwrap();
                path.display().to_string()
            };
            let lower: Vec<String> = (0..count).map(|number| folder(number.to_string())).collect();
            for (number, layer) in lower.iter().enumerate() {
                std::fs::write(Path::new(layer).join("top"), number.to_string()).unwrap();
            }
            let writable = Some((folder("upper".into()), folder("work".into())));
            let mount = Plan { lower, writable, label: None }.create_as_before().unwrap();
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            let top = openat(&mount, "top", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            assert_eq!(std::io::read_to_string(std::fs::File::from(top)).unwrap(), "0");
            drop(openat(&mount, "new", flags, Mode::from_raw_mode(0o600)).unwrap());
            assert!(base.join("upper/new").exists());
        }
    }
}

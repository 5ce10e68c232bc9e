//! Images made of Debian packages: busybox, nginx, redis, python, in the storage of a registry, built once.
//!
//! The storage lies in the cache under a key made of what the images are built from and of the recipe, so that a new
//! package or another recipe gives new images.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::place::{cache, debian, need_root, root_of};
use crate::world::{Daemon, World};

/// Raised when what is below changes the images.
const RECIPE: u32 = 6;
/// Port of the registry on loopback, in every world.
pub const REGISTRY_PORT: u16 = 5000;
/// What the images of this module are called together.
pub const ORDINARY: &str = "ordinary";
/// How long the registry may take to listen.
const REGISTRY_TIME: Duration = Duration::from_secs(20);

/// What goes into an image on top of busybox.
pub(crate) struct Recipe {
    /// Its name in the registry.
    pub name: &'static str,
    /// Its tags.
    pub tags: &'static [&'static str],
    /// Programs, with the libraries they load.
    pub programs: &'static [&'static str],
    /// Debian packages of which all files below `/usr/lib` are taken.
    pub libraries: &'static [&'static str],
    /// Single files.
    pub files: &'static [&'static str],
    /// Files that hold a text: where, and which.
    pub texts: &'static [(&'static str, &'static str)],
    /// Folders to make, owned by the user that the program becomes.
    pub folders: &'static [(&'static str, u32)],
    /// Symbolic links: where, and to what.
    pub links: &'static [(&'static str, &'static str)],
    /// A program of the image's own.
    pub compiled: Option<Compiled>,
    /// The image's entry point.
    pub entrypoint: &'static [&'static str],
    /// The image's command.
    pub command: &'static [&'static str],
    /// The image's user.
    pub user: &'static str,
}

/// A program in C that needs nothing.
pub(crate) struct Compiled {
    /// Where it is put.
    pub place: &'static str,
    /// Its text.
    pub source: &'static str,
    /// Its mode.
    pub mode: u32,
}

/// Says with whose rights it runs.
pub(crate) const SAY_USER: &str = "#include <stdio.h>\n#include <unistd.h>\n\
    int main(void) { return printf(\"Effective uid: %u\\n\", (unsigned)geteuid()) < 0; }\n";

/// busybox alone.
pub(crate) const PLAIN: Recipe = Recipe {
    name: "",
    tags: &["1"],
    programs: &[],
    libraries: &[],
    files: &[],
    texts: &[],
    folders: &[],
    links: &[],
    compiled: None,
    entrypoint: &[],
    command: &["sh"],
    user: "",
};

/// Images that are built together.
pub(crate) struct Set<'a> {
    /// What it is called where all is made already.
    pub name: &'static str,
    /// What they are built from and by which recipe: another key gives other images.
    pub key: Vec<u8>,
    /// The busybox of all of them.
    pub busybox: &'a Path,
    /// The images.
    pub recipes: &'static [Recipe],
}

const RECIPES: &[Recipe] = &[
    Recipe { name: "busybox", ..PLAIN },
    // What holds the namespaces of a pod on other runtimes.
    Recipe { name: "pause", command: &["sleep", "1000000"], ..PLAIN },
    Recipe { name: "nonroot", user: "1000:1000", ..PLAIN },
    Recipe { name: "named", user: "somebody", ..PLAIN },
    Recipe { name: "said", entrypoint: &["echo", "image"], command: &["default"], ..PLAIN },
    // A program that gets root's rights from its file, and says whether it has them.
    Recipe {
        name: "setuid",
        compiled: Some(Compiled { place: "usr/bin/say-user", source: SAY_USER, mode: 0o4755 }),
        command: &["say-user"],
        ..PLAIN
    },
    Recipe {
        name: "nginx",
        programs: &["/usr/sbin/nginx"],
        files: &["/etc/nginx/mime.types"],
        folders: &[("var/lib/nginx", 33), ("var/log/nginx", 33), ("run", 0), ("usr/share/nginx/html", 0)],
        command: &["nginx", "-g", "daemon off;"],
        ..PLAIN
    },
    Recipe {
        name: "redis",
        programs: &["/usr/bin/redis-check-rdb", "/usr/bin/redis-cli"],
        folders: &[("data", 999)],
        links: &[("usr/bin/redis-server", "redis-check-rdb")],
        command: &["redis-server", "--dir", "/data", "--bind", "0.0.0.0", "--protected-mode", "no"],
        ..PLAIN
    },
    Recipe {
        name: "python",
        programs: &["/usr/bin/python3"],
        libraries: &["libpython3.11-minimal", "libpython3.11-stdlib"],
        command: &["python3"],
        ..PLAIN
    },
];

/// The storage of a registry that holds `busybox:1`, `nginx:1`, `redis:1`, `python:1` and others.
///
/// # Panics
/// When a package is missing or a program fails.
#[must_use]
pub fn storage() -> PathBuf {
    let mut key = versions(&["busybox-static", "nginx-light", "redis-server", "python3.11", "libc6"]);
    key.extend(RECIPE.to_le_bytes());
    Set { name: ORDINARY, key, busybox: &debian("busybox", "busybox-static"), recipes: RECIPES }.storage()
}

/// Versions of Debian packages, a line for each.
///
/// # Panics
/// When one is missing.
pub(crate) fn versions(packages: &[&str]) -> Vec<u8> {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${Package}=${Version}\n"]).args(packages).output();
    let output = output.expect("run dpkg-query");
    assert!(
        output.status.success(),
        "packages are missing (cargo xtask test installs them): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

impl Set<'_> {
    /// The storage of a registry that holds the images; builds it unless it is there. A guest gets what was made outside,
    /// whatever its own packages are.
    pub(crate) fn storage(&self) -> PathBuf {
        need_root();
        if let Some(made) = std::env::var_os("ORLOP_IMAGES") {
            return PathBuf::from(made).join(self.name);
        }
        let _ = debian("skopeo", "skopeo");
        let _ = debian("umoci", "umoci");
        let folder = cache().join("images").join(hex::encode(&Sha256::digest(&self.key)[..8]));
        std::fs::create_dir_all(folder.parent().unwrap()).unwrap();
        // Several test programs may start at once: one builds, the others wait.
        let lock = std::fs::File::create(folder.with_extension("lock")).unwrap();
        lock.lock().expect("lock the images");
        if !folder.exists() {
            let fresh = folder.with_extension("new");
            let _ = std::fs::remove_dir_all(&fresh);
            std::fs::create_dir_all(&fresh).unwrap();
            self.build(&fresh);
            std::fs::rename(&fresh, &folder).unwrap();
        }
        folder
    }

    /// Builds all images and pushes them into a storage in `folder`.
    fn build(&self, folder: &Path) {
        let work = tempfile::tempdir().unwrap();
        let layout = work.path().join("layout");
        let layout = layout.display().to_string();
        quiet(Command::new("umoci").args(["init", "--layout", &layout]));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut registry = serve(folder, port, work.path(), Command::new("docker-registry"), false);
        let base = format!("{layout}:base");
        quiet(Command::new("umoci").args(["new", "--image", &base]));
        layer(work.path(), &base, |root| root_of(self.busybox, root));
        for (number, recipe) in self.recipes.iter().enumerate() {
            // Names in the layout are plain, those in the registry may have folders.
            let name = format!("image-{number}");
            let image = format!("{layout}:{name}");
            quiet(Command::new("umoci").args(["tag", "--image", &base, &name]));
            layer(work.path(), &image, |root| fill(root, recipe));
            configure(&image, recipe);
            for tag in recipe.tags {
                let to = format!("docker://127.0.0.1:{port}/{}:{tag}", recipe.name);
                quiet(
                    Command::new("skopeo")
                        .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
                        .args([&format!("oci:{image}"), &to]),
                );
            }
        }
        let _ = registry.kill();
        let _ = registry.wait();
    }
}

/// Sets the image's command, user and environment.
fn configure(image: &str, recipe: &Recipe) {
    let mut config = Command::new("umoci");
    config.args(["config", "--image", image, "--config.env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    for word in recipe.entrypoint {
        config.args(["--config.entrypoint", word]);
    }
    for word in recipe.command {
        config.args(["--config.cmd", word]);
    }
    if !recipe.user.is_empty() {
        config.args(["--config.user", recipe.user]);
    }
    quiet(&mut config);
}

/// Adds a layer with what `change` does to the image's files.
fn layer(work: &Path, image: &str, change: impl FnOnce(&Path)) {
    let bundle = work.join("bundle");
    let _ = std::fs::remove_dir_all(&bundle);
    let bundle_name = bundle.display().to_string();
    quiet(Command::new("umoci").args(["unpack", "--image", image, &bundle_name]));
    change(&bundle.join("rootfs"));
    quiet(Command::new("umoci").args(["repack", "--image", image, &bundle_name]));
}

/// Puts what the recipe names into the root file system.
fn fill(root: &Path, recipe: &Recipe) {
    use std::os::unix::fs::{PermissionsExt, chown};
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    let users = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\nredis:x:999:999::/data:/bin/false\n\
                 somebody:x:1234:1235::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
    std::fs::write(root.join("etc/passwd"), users).unwrap();
    let groups = "root:x:0:\nwww-data:x:33:\nredis:x:999:\nsome:x:1235:\nextra:x:4321:somebody\nnogroup:x:65534:\n";
    std::fs::write(root.join("etc/group"), groups).unwrap();
    let mut files: BTreeSet<PathBuf> = recipe.files.iter().map(PathBuf::from).collect();
    for package in recipe.libraries {
        let output = quiet(Command::new("dpkg").args(["-L", package]));
        let listed = output.lines().filter(|line| line.starts_with("/usr/lib/") && !line.contains("/test/"));
        files.extend(listed.map(PathBuf::from).filter(|path| path.is_file()));
    }
    files.extend(recipe.programs.iter().map(PathBuf::from));
    let loaders: Vec<PathBuf> = files
        .iter()
        .filter(|file| {
            recipe.programs.iter().any(|name| Path::new(name) == *file) || file.to_string_lossy().contains(".so")
        })
        .cloned()
        .collect();
    for file in loaders {
        files.extend(libraries(&file));
    }
    for file in files {
        let place = root.join(file.strip_prefix("/").unwrap());
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        // Links are followed: the image holds plain files under the names that are asked for.
        std::fs::copy(&file, &place).unwrap_or_else(|error| panic!("copy {}: {error}", file.display()));
    }
    for (folder, owner) in recipe.folders {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        chown(&folder, Some(*owner), Some(*owner)).unwrap();
    }
    for (place, target) in recipe.links {
        std::os::unix::fs::symlink(target, root.join(place)).unwrap();
    }
    for (place, text) in recipe.texts {
        std::fs::create_dir_all(root.join(place).parent().unwrap()).unwrap();
        std::fs::write(root.join(place), text).unwrap();
    }
    if let Some(program) = &recipe.compiled {
        let place = root.join(program.place);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        compile(program.source, &place);
        std::fs::set_permissions(&place, PermissionsExt::from_mode(program.mode)).unwrap();
    }
}

/// Compiles a static program.
pub(crate) fn compile(source: &str, place: &Path) {
    let file = tempfile::Builder::new().suffix(".c").tempfile().unwrap();
    std::fs::write(file.path(), source).unwrap();
    quiet(Command::new(debian("gcc", "gcc")).args(["-static", "-O1", "-s", "-o"]).arg(place).arg(file.path()));
}

/// The libraries that the loader takes for a program, and the loader itself.
fn libraries(file: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(file).output().expect("run ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// Starts Debian's registry on loopback and waits until it listens; `command` says in which namespaces.
///
/// # Panics
/// When it ends or does not listen in time.
#[must_use]
pub fn serve(storage: &Path, port: u16, work: &Path, command: Command, readonly: bool) -> Child {
    serve_with(storage, port, work, command, &format!("  maintenance:\n    readonly:\n      enabled: {readonly}\n"))
}

/// The registry in a world, on a port of its own and read-only, for those alone who know a name and a password.
///
/// # Panics
/// When it does not listen in time.
#[must_use]
pub fn private_registry(world: &World, port: u16, user: &str, password: &str) -> Daemon {
    let users = world.folder().join(format!("users-{port}"));
    let line = quiet(Command::new(debian("htpasswd", "apache2-utils")).args(["-nbB", user, password]));
    std::fs::write(&users, line).unwrap();
    let more = format!(
        "  maintenance:\n    readonly:\n      enabled: true\nauth:\n  htpasswd:\n    realm: private\n    path: {}\n",
        users.display()
    );
    Daemon::of(serve_with(&storage(), port, world.folder(), world.command("docker-registry"), &more))
}

/// Starts the registry with more lines in its configuration, which begin within `storage`.
fn serve_with(storage: &Path, port: u16, work: &Path, mut command: Command, more: &str) -> Child {
    let _ = debian("docker-registry", "docker-registry");
    let config = work.join(format!("registry-{port}.yml"));
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nhttp:\n  addr: 127.0.0.1:{port}\nstorage:\n  filesystem:\n    \
         rootdirectory: {}\n{more}",
        storage.display()
    );
    std::fs::write(&config, text).unwrap();
    let log = std::fs::File::create(work.join(format!("registry-{port}.log"))).unwrap();
    command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = command.spawn().expect("start docker-registry");
    let began = Instant::now();
    while !listens(child.id(), port) {
        assert!(child.try_wait().unwrap().is_none(), "docker-registry ended; see {}", config.display());
        assert!(began.elapsed() < REGISTRY_TIME, "docker-registry does not listen on port {port}");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// The registry in a world, on its usual port.
///
/// # Panics
/// When it does not listen in time.
#[must_use]
pub fn registry(world: &World, storage: &Path) -> Daemon {
    Daemon::of(serve(storage, REGISTRY_PORT, world.folder(), world.command("docker-registry"), true))
}

/// Whether somebody listens on a port in the network namespace of a process.
#[must_use]
pub fn listens(pid: u32, port: u16) -> bool {
    let mark = format!(":{port:04X} ");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        // Local address is the second word, state 0A is "listening".
        text.lines().any(|line| {
            let mut words = line.split_whitespace();
            let local = words.nth(1).unwrap_or_default();
            format!("{local} ").ends_with(&mark) && words.nth(1) == Some("0A")
        })
    })
}

/// Runs a command to its success; what it prints.
fn quiet(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

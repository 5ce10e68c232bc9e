//! What the cases share: a store in a temporary directory, programs that must be there, images made on the spot.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use orlop_image::build::{ImageBuilder, LayerBuilder};
use orlop_image::{ImageConfig, ImageRecord, Images, RegistriesConfig};

/// A store that goes away with the test.
pub struct Bench {
    pub directory: tempfile::TempDir,
    pub config: ImageConfig,
    pub images: Arc<Images>,
}

impl Bench {
    pub fn new(registries: RegistriesConfig) -> Self {
        Self::with(|config| config.registries = registries)
    }

    /// With settings changed.
    pub fn with(change: impl FnOnce(&mut ImageConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = ImageConfig::new(directory.path().join("cri"));
        change(&mut config);
        Self::open(directory, config)
    }

    pub fn open(directory: tempfile::TempDir, config: ImageConfig) -> Self {
        let images = Arc::new(Images::open(config.clone()).unwrap());
        Self { directory, config, images }
    }

    /// Lets go of the store, for somebody else to open it.
    pub fn close(self) -> (tempfile::TempDir, ImageConfig) {
        (self.directory, self.config)
    }

    /// The same store, opened again as after a restart.
    pub fn reopen(self) -> Self {
        let (directory, config) = self.close();
        Self::open(directory, config)
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.config.state_dir.join("image").join(name)
    }

    pub fn image(&self, name: &str) -> ImageRecord {
        self.images.resolve(name).unwrap().unwrap_or_else(|| panic!("{name} is not there"))
    }

    /// Names of what lies in a folder of the store.
    pub fn files(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.state(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Waits until the workers of an ended pull have cleaned up.
    pub async fn wait_for_clean_staging(&self) {
        let began = std::time::Instant::now();
        while !self.files("staging").is_empty() {
            assert!(began.elapsed().as_secs() < 5, "left in staging: {:?}", self.files("staging"));
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Nothing half-made, nothing kept.
    pub fn assert_empty(&self) {
        for folder in ["layers", "staging", "blobs/sha256", "names", "quarantine"] {
            assert!(folder == "blobs/sha256" || self.files(folder).is_empty(), "{folder}: {:?}", self.files(folder));
        }
        assert!(self.images.list().is_empty());
    }
}

/// Short waits, so that tests of failures are quick.
pub fn quick() -> RegistriesConfig {
    RegistriesConfig {
        retry_base_milliseconds: 5,
        progress_timeout_seconds: 5,
        retry_after_max_seconds: 2,
        ..RegistriesConfig::default()
    }
}

/// Runs a program to its end; its output is shown when it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("{program}: {error}: install docker-registry skopeo umoci busybox-static apache2-utils")
    });
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A busybox image made by umoci in an OCI layout; returns `layout:tag`.
pub fn umoci_busybox(directory: &Path) -> String {
    assert!(Path::new("/bin/busybox").exists(), "install busybox-static");
    let layout = directory.join("layout");
    let image = format!("{}:base", layout.display());
    run("umoci", &["init", "--layout", &layout.display().to_string()]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["insert", "--image", &image, "/bin/busybox", "/bin/busybox"]);
    let tree = directory.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::os::unix::fs::symlink("busybox", tree.join("sh")).unwrap();
    run("umoci", &["insert", "--image", &image, &tree.join("sh").display().to_string(), "/bin/sh"]);
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.entrypoint",
            "/bin/sh",
            "--config.user",
            "1002:1003",
            "--config.env",
            "A=b",
            "--config.label",
            "l=v",
        ],
    );
    image
}

/// Bytes that don't compress, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A small image of two layers.
pub fn small_image() -> ImageBuilder {
    ImageBuilder::new()
        .layer(LayerBuilder::new().file("/etc/base", "base", 0o644).directory("/tmp", 0o1777))
        .layer(LayerBuilder::new().file("/bin/app", noise(300_000), 0o755).symlink("/bin/alias", "app"))
        .entrypoint(["/bin/app"])
}

/// A loopback port that nobody listens on.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The text of an error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(" | ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

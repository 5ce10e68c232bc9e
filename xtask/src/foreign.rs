//! Foreign programs of tests and benchmarks: pinned Go modules, one `go.mod` per family below `tests/conformance`, and
//! busybox, built once into a cache outside the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::busybox;
use crate::workspace::{cache, have, path, root, run, say};

/// One program to build.
struct Program {
    name: &'static str,
    package: &'static str,
    how: How,
}

/// How it is built.
enum How {
    /// A plain static `go build`.
    Plain,
    /// With build tags.
    Tags(&'static str),
    /// With cgo and the seccomp library.
    Cgo,
    /// A test binary.
    Test,
}

/// A family shares one `go.mod`.
struct Family {
    folder: &'static str,
    /// Sub-folder of the cache, below `bin` unless it is a set of plugins.
    place: &'static str,
    programs: &'static [Program],
    /// Values stamped into the binary.
    stamp: &'static [&'static str],
}

const fn plain(name: &'static str, package: &'static str) -> Program {
    Program { name, package, how: How::Plain }
}

const FAMILIES: &[Family] = &[
    Family {
        folder: "kubernetes",
        place: "bin",
        programs: &[
            plain("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            plain("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            plain("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
            plain("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            plain("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ],
        stamp: &[
            "k8s.io/component-base/version.gitVersion=v1.36.3",
            "k8s.io/component-base/version.gitMajor=1",
            "k8s.io/component-base/version.gitMinor=36",
            "k8s.io/client-go/pkg/version.gitVersion=v1.36.3",
        ],
    },
    Family { folder: "etcd", place: "bin", programs: &[plain("etcd", "go.etcd.io/etcd/server/v3")], stamp: &[] },
    Family {
        folder: "cri-tools",
        place: "bin",
        programs: &[
            plain("crictl", "sigs.k8s.io/cri-tools/cmd/crictl"),
            Program { name: "critest", package: "sigs.k8s.io/cri-tools/cmd/critest", how: How::Test },
        ],
        stamp: &["sigs.k8s.io/cri-tools/pkg/version.Version=v1.36.0"],
    },
    Family {
        folder: "csi",
        place: "bin",
        programs: &[plain("csi-sanity", "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity")],
        stamp: &[],
    },
    Family {
        folder: "cni",
        place: "cni",
        programs: &[
            plain("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            plain("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            plain("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
            plain("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
        ],
        stamp: &[],
    },
    Family {
        folder: "containerd",
        place: "bin",
        programs: &[
            Program {
                name: "containerd",
                package: "github.com/containerd/containerd/v2/cmd/containerd",
                how: How::Tags("no_btrfs"),
            },
            Program {
                name: "containerd-shim-runc-v2",
                package: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                how: How::Tags("no_grpc"),
            },
        ],
        stamp: &["github.com/containerd/containerd/v2/version.Version=v2.4.2"],
    },
    Family {
        folder: "runc",
        place: "bin",
        programs: &[Program { name: "runc", package: "github.com/opencontainers/runc", how: How::Cgo }],
        stamp: &["main.version=1.5.2"],
    },
];

/// The one that is not of Go modules.
const BUSYBOX: &str = "busybox";

/// Builds the named families, or all that the test suite needs.
pub fn build(families: &[String]) -> Result<()> {
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.folder).chain([BUSYBOX]).collect();
    if let Some(unknown) = families.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("no family {unknown:?}; there are {known:?}");
    }
    if families.is_empty() || families.iter().any(|name| name == BUSYBOX) {
        busybox::build()?;
    }
    if families.iter().all(|name| name == BUSYBOX) && !families.is_empty() {
        return Ok(());
    }
    if !have("go") {
        bail!("Go 1.26 or newer is missing: install it from go.dev/dl and put `go` on the PATH");
    }
    for family in FAMILIES {
        if families.is_empty() || families.iter().any(|name| name == family.folder) {
            build_family(family)?;
        }
    }
    Ok(())
}

/// Builds a family unless its stamp says that it is there already.
fn build_family(family: &Family) -> Result<()> {
    let folder = root().join("tests/conformance").join(family.folder);
    let place = cache()?.join(family.place);
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    let stamp_file = place.join(format!(".{}.built", family.folder));
    let stamp = digest(&folder, family)?;
    let there = family.programs.iter().all(|program| place.join(program.name).is_file());
    if there && std::fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(());
    }
    for program in family.programs {
        say(format!("building {} from {}", program.name, program.package));
        build_program(program, family, &folder, &place)?;
    }
    std::fs::write(&stamp_file, stamp).with_context(|| format!("write {}", stamp_file.display()))
}

/// Builds one program to a new file and renames it into place.
fn build_program(program: &Program, family: &Family, folder: &Path, place: &Path) -> Result<()> {
    let mut flags = String::from("-s -w");
    for value in family.stamp {
        flags.push_str(" -X ");
        flags.push_str(value);
    }
    let fresh: PathBuf = place.join(format!(".{}.new", program.name));
    let mut go = Command::new("go");
    go.current_dir(folder)
        .env("PATH", path())
        .env("CGO_ENABLED", if matches!(program.how, How::Cgo) { "1" } else { "0" });
    match program.how {
        How::Test => go.args(["test", "-c"]),
        _ => go.arg("build"),
    };
    go.args(["-trimpath", "-buildvcs=false", "-ldflags", &flags]).arg("-o").arg(&fresh);
    match program.how {
        How::Tags(tags) => {
            go.args(["-tags", tags]);
        }
        How::Cgo => {
            go.args(["-buildmode=pie", "-tags", "seccomp"]);
        }
        How::Plain | How::Test => {}
    }
    run(go.arg(program.package))?;
    std::fs::rename(&fresh, place.join(program.name)).with_context(|| format!("install {}", program.name))
}

/// What the family is built from: its module files, packages and stamps.
fn digest(folder: &Path, family: &Family) -> Result<String> {
    let mut digest = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = folder.join(file);
        digest.update(std::fs::read(&path).with_context(|| format!("read {}", path.display()))?);
    }
    for word in family.programs.iter().map(|program| program.package).chain(family.stamp.iter().copied()) {
        digest.update(word);
    }
    Ok(hex::encode(digest.finalize()))
}

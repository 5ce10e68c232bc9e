//! The images that critest asks for by name, made here of busybox and Debian's nginx.
//!
//! They do what the specs look at: who runs, what listens, what is printed. Their content is ours, so that no digest of
//! the originals can be asked for.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::images::{Compiled, PLAIN, Recipe, SAY_USER, Set, versions};
use crate::place::foreign;

/// What these images are called together.
pub const IMAGES: &str = "critest";
/// Raised when what is below changes the images.
const RECIPE: u32 = 2;

/// A web server on this port that says hello.
macro_rules! server {
    ($port:literal) => {
        concat!(
            "worker_processes 1;\nerror_log /dev/stderr;\nevents {}\nhttp {\n  access_log /dev/stdout;\n  server {\n    \
             listen ",
            $port,
            ";\n    root /usr/share/nginx/html;\n  }\n}\n"
        )
    };
}

/// The page of all web servers.
const PAGE: (&str, &str) = ("usr/share/nginx/html/index.html", "hello\n");

/// nginx without a configuration.
const NGINX: Recipe = Recipe {
    programs: &["/usr/sbin/nginx"],
    folders: &[("var/lib/nginx", 33), ("var/log/nginx", 33), ("run", 0)],
    links: &[("var/run", "../run")],
    command: &["nginx", "-g", "daemon off;"],
    ..PLAIN
};

/// An image that differs from the others by a file.
const fn told_apart(name: &'static str, tag: &'static [&'static str], file: &'static [(&str, &str)]) -> Recipe {
    Recipe { name, tags: tag, texts: file, ..PLAIN }
}

/// An image with a user.
const fn of_user(name: &'static str, user: &'static str) -> Recipe {
    Recipe { name, tags: LATEST, user, ..PLAIN }
}

const LATEST: &[&str] = &["latest"];

/// Holds the namespaces of a pod and takes up its orphans. It must not be called as a program that specs look for.
const PAUSE: &str = "#include <signal.h>\n#include <unistd.h>\nstatic void end(int number) { _exit(number & 0); }\n\
                     int main(void)\n{\n    signal(SIGCHLD, SIG_IGN);\n    signal(SIGTERM, end);\n    \
                     signal(SIGINT, end);\n    for (;;) pause();\n}\n";

/// A version of the image of sandboxes.
const fn pause(tag: &'static [&'static str], file: &'static [(&str, &str)]) -> Recipe {
    Recipe {
        name: "pause",
        tags: tag,
        texts: file,
        compiled: Some(Compiled { place: "pause", source: PAUSE, mode: 0o755 }),
        command: &["/pause"],
        ..PLAIN
    }
}

const RECIPES: &[Recipe] = &[
    pause(&["3.9"], &[("is", "3.9\n")]),
    pause(&["3.10.1"], &[("is", "3.10.1\n")]),
    Recipe { name: "e2e-test-images/busybox", tags: &["1.29-2"], ..PLAIN },
    Recipe {
        name: "e2e-test-images/nginx",
        tags: &["1.14-2"],
        texts: &[("etc/nginx/nginx.conf", server!("80")), PAGE],
        ..NGINX
    },
    Recipe {
        name: "k8s-staging-cri-tools/hostnet-nginx-amd64",
        tags: LATEST,
        texts: &[("etc/nginx/nginx.conf", server!("12003")), PAGE],
        ..NGINX
    },
    Recipe {
        name: "e2e-test-images/httpd",
        tags: &["2.4.39-4"],
        texts: &[PAGE],
        // Its name has to be in its log.
        command: &["sh", "-c", "echo httpd starts; exec httpd -f -p 80 -h /usr/share/nginx/html"],
        ..PLAIN
    },
    Recipe {
        name: "e2e-test-images/nonewprivs",
        tags: &["1.3"],
        compiled: Some(Compiled { place: "usr/bin/nnp", source: SAY_USER, mode: 0o4755 }),
        command: &["nnp"],
        ..PLAIN
    },
    told_apart("k8s-staging-cri-tools/test-image-1", LATEST, &[("is", "1\n")]),
    told_apart("k8s-staging-cri-tools/test-image-2", LATEST, &[("is", "2\n")]),
    told_apart("k8s-staging-cri-tools/test-image-3", LATEST, &[("is", "3\n")]),
    told_apart("k8s-staging-cri-tools/test-image-latest", LATEST, &[("is", "latest\n")]),
    told_apart("k8s-staging-cri-tools/test-image-digest", LATEST, &[("is", "digest\n")]),
    told_apart("k8s-staging-cri-tools/test-image-tags", &["1", "2", "3"], &[("is", "tags\n")]),
    told_apart("k8s-staging-cri-tools/test-image-tag", &["test"], &[("is", "test\n")]),
    told_apart("k8s-staging-cri-tools/test-image-tag", &["all"], &[("is", "all\n")]),
    of_user("k8s-staging-cri-tools/test-image-user-uid", "1002"),
    of_user("k8s-staging-cri-tools/test-image-user-username", "www-data"),
    of_user("k8s-staging-cri-tools/test-image-user-uid-group", "1003:1004"),
    of_user("k8s-staging-cri-tools/test-image-user-username-group", "www-data:1004"),
    Recipe {
        name: "k8s-staging-cri-tools/test-image-predefined-group",
        tags: LATEST,
        texts: &[
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/:/bin/sh\n"),
            ("etc/group", "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"),
        ],
        user: "1000",
        ..PLAIN
    },
];

/// The hosts in the names that critest uses.
pub const HOSTS: [&str; 3] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io"];

/// The storage of a registry that holds the images.
///
/// # Panics
/// When a package is missing or a program fails.
#[must_use]
pub fn storage() -> PathBuf {
    let busybox = foreign("busybox");
    let mut key = versions(&["nginx-light", "libc6"]);
    key.extend(Sha256::digest(std::fs::read(&busybox).unwrap()));
    key.extend(b"critest");
    key.extend(RECIPE.to_le_bytes());
    Set { name: IMAGES, key, busybox: &busybox, recipes: RECIPES }.storage()
}

//! Credentials out of Docker's `config.json` and its helpers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use orlop_image::{Credentials, RegistriesConfig};

use crate::scripted::{Reply, ScriptedRegistry, Seen};
use crate::support::{Bench, chain, quick, small_image};

const SECRET: &str = "Basic bWU6c2VjcmV0";

/// A registry that wants `me:secret`.
fn registry(layout: &Path) -> ScriptedRegistry {
    small_image().write_layout_dir(layout, "test:1").unwrap();
    ScriptedRegistry::start(layout, |seen: &Seen, _| {
        let known = seen.headers.get("authorization").is_some_and(|value| value == SECRET);
        (!known).then(|| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""))
    })
}

/// Puts a helper where programs are looked for; its name is the case's own.
fn helper(name: &str, script: &str) -> tempfile::TempPath {
    let path = Path::new("/usr/local/bin").join(format!("docker-credential-{name}"));
    fs::create_dir_all("/usr/local/bin").unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    tempfile::TempPath::try_from_path(path).unwrap()
}

#[tokio::test]
async fn dockers_file_is_asked_last() {
    let layout = tempfile::tempdir().unwrap();
    let registry = registry(layout.path());
    let file = layout.path().join("config.json");
    let config = RegistriesConfig { docker_config: Some(file.clone()), ..quick() };
    let bench = Bench::new(config);
    let pull = async |credentials| {
        bench.images.pull(&registry.reference("1"), credentials).await.map_err(|error| chain(&*error))
    };
    assert!(pull(None).await.unwrap_err().contains("wants credentials"), "no file is no error");
    let host = format!("127.0.0.1:{}", registry.port);
    let write = |auth: &str| fs::write(&file, format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)).unwrap();
    write("bWU6d3Jvbmc=");
    assert!(pull(None).await.unwrap_err().contains("wants credentials"));
    pull(Some(Credentials::basic("me", "secret"))).await.expect("those of the pull come first");
    write("bWU6c2VjcmV0");
    pull(None).await.expect("the file is read again");
    assert!(pull(Some(Credentials::basic("me", "wrong"))).await.is_err(), "those of the pull come first");
    for (text, part) in [("{", "config.json: EOF"), (r#"{"auths":{"HOST":{"auth":"!"}}}"#, "auths.\"127.0.0.1")] {
        fs::write(&file, text.replace("HOST", &host)).unwrap();
        let error = pull(None).await.unwrap_err();
        assert!(error.contains(part) && error.contains("config.json"), "{error}");
    }
}

#[tokio::test]
async fn helpers_give_credentials() {
    let layout = tempfile::tempdir().unwrap();
    let registry = registry(layout.path());
    let host = format!("127.0.0.1:{}", registry.port);
    let file = layout.path().join("config.json");
    let tag = format!("orlop-test-{}", std::process::id());
    let good = format!(
        "[ \"$1\" = get ] && [ \"$(cat)\" = \"{host}\" ] && echo '{{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}}'"
    );
    let nothing = "echo 'credentials not found in native keychain'; exit 1";
    let cases = [
        ("good", good.as_str(), None),
        ("nothing", nothing, Some("wants credentials")),
        ("broken", "echo out of order >&2; exit 7", Some("get 127.0.0.1")),
        ("garbage", "echo sesame-open", Some("gave no {Username, Secret}")),
    ];
    let bench = Bench::new(RegistriesConfig { docker_config: Some(file.clone()), ..quick() });
    for (name, script, failure) in cases {
        let name = format!("{tag}-{name}");
        let _helper = helper(&name, script);
        for text in [format!(r#"{{"credsStore":"{name}"}}"#), format!(r#"{{"credHelpers":{{"{host}":"{name}"}}}}"#)] {
            fs::write(&file, &text).unwrap();
            let outcome = bench.images.pull(&registry.reference("1"), None).await.map_err(|error| chain(&*error));
            match failure {
                None => drop(outcome.unwrap_or_else(|error| panic!("{text}: {error}"))),
                Some(part) => {
                    let error = outcome.unwrap_err();
                    assert!(error.contains(part) && !error.contains("sesame"), "{text}: {error}");
                }
            }
        }
    }
    for (name, part) in [("../sh", "is no name of a helper"), ("orlop-test-missing", "can't be run")] {
        fs::write(&file, format!(r#"{{"credsStore":"{name}"}}"#)).unwrap();
        let error = chain(&*bench.images.pull(&registry.reference("1"), None).await.unwrap_err());
        assert!(error.contains(part) && error.contains("credsStore"), "{error}");
    }
}

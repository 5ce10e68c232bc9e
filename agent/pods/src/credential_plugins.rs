//! Asking the node's credential programs: one call at a time per program, with a deadline, and answers kept as long as
//! they are good.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_agent_core::credential_providers::{AnswerScope, CredentialProvider, ProviderAnswer};
use orlop_agent_core::images::Keyring;
use orlop_agent_core::metrics::{Metrics, names};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

/// Longest call of a program (kubelet `ExecPlugin`).
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Longest answer in bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// Most bytes of what a program says when it fails.
const COMPLAINT_MAX: u64 = 4096;
/// Most answers that are kept of one program.
const ANSWERS_MAX: usize = 1024;

/// The programs of a node.
#[derive(Debug)]
pub(crate) struct CredentialPlugins {
    folder: PathBuf,
    plugins: Vec<Plugin>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Plugin {
    provider: CredentialProvider,
    /// Answers with the time that they are good until. Held during a call, so that pods that start together ask once.
    answers: Mutex<HashMap<String, (Instant, Arc<ProviderAnswer>)>>,
}

impl CredentialPlugins {
    /// Programs in a folder.
    pub(crate) fn new(folder: PathBuf, providers: Vec<CredentialProvider>, metrics: Arc<Metrics>) -> CredentialPlugins {
        let plugin = |provider| Plugin { provider, answers: Mutex::default() };
        CredentialPlugins { folder, plugins: providers.into_iter().map(plugin).collect(), metrics }
    }

    /// Adds what the programs give for an image. One that fails is left out, and the log says why.
    pub(crate) async fn add_to(&self, keyring: &mut Keyring, image: &str) {
        for plugin in self.plugins.iter().filter(|plugin| plugin.provider.serves(image)) {
            match self.ask(plugin, image).await {
                Ok(answer) => keyring.add_answer(&answer),
                Err(why) => {
                    let name = &plugin.provider.name;
                    tracing::warn!(image, program = name, why, "a credential program gives no credentials");
                }
            }
        }
    }

    async fn ask(&self, plugin: &Plugin, image: &str) -> Result<Arc<ProviderAnswer>, String> {
        let mut answers = plugin.answers.lock().await;
        let now = Instant::now();
        answers.retain(|_, (until, _)| *until > now);
        if let Some((_, answer)) = AnswerScope::ALL.iter().find_map(|scope| answers.get(&scope.key(image))) {
            return Ok(answer.clone());
        }
        let begun = Instant::now();
        let answer = self.answer(&plugin.provider, image).await;
        let name = [plugin.provider.name.as_str()];
        self.metrics.observe(&names::CREDENTIAL_PLUGIN_SECONDS, &name, begun.elapsed().as_secs_f64());
        if answer.is_err() {
            self.metrics.count(&names::CREDENTIAL_PLUGIN_ERRORS, &name);
        }
        let answer = Arc::new(answer?);
        let lasts = Duration::try_from(answer.lasts).unwrap_or_default();
        if !lasts.is_zero() && answers.len() < ANSWERS_MAX {
            answers.insert(answer.scope.key(image), (now + lasts, answer.clone()));
        }
        Ok(answer)
    }

    async fn answer(&self, provider: &CredentialProvider, image: &str) -> Result<ProviderAnswer, String> {
        match tokio::time::timeout(CALL_DEADLINE, self.call(provider, image)).await {
            Ok(result) => provider.parse_answer(&result?),
            Err(_) => Err(format!("it did not answer within {} s", CALL_DEADLINE.as_secs())),
        }
    }

    async fn call(&self, provider: &CredentialProvider, image: &str) -> Result<Vec<u8>, String> {
        let path = self.folder.join(&provider.name);
        let mut child = Command::new(&path)
            .args(&provider.args)
            .envs(provider.env.iter().map(|variable| (&variable.name, &variable.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let (answer, complaint) = talk(&mut child, provider.request(image)).await.map_err(|error| error.to_string())?;
        let status = child.wait().await.map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&complaint).trim()));
        }
        if answer.len() as u64 > ANSWER_MAX {
            return Err(format!("its answer is longer than {ANSWER_MAX} bytes"));
        }
        Ok(answer)
    }
}

/// Says the request and reads both outputs, side by side: a program may answer before it has read.
async fn talk(child: &mut Child, request: String) -> std::io::Result<(Vec<u8>, Vec<u8>)> {
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let say = async {
        if let Some(mut input) = input {
            // A program that does not read has no need to.
            let _ = input.write_all(request.as_bytes()).await;
        }
    };
    let hear = async {
        let mut bytes = Vec::new();
        if let Some(output) = output {
            output.take(ANSWER_MAX + 1).read_to_end(&mut bytes).await?;
        }
        Ok::<_, std::io::Error>(bytes)
    };
    let complain = async {
        let mut bytes = Vec::new();
        if let Some(mut errors) = errors {
            (&mut errors).take(COMPLAINT_MAX).read_to_end(&mut bytes).await?;
            // The rest is read away, so that the program can end.
            tokio::io::copy(&mut errors, &mut tokio::io::sink()).await?;
        }
        Ok::<_, std::io::Error>(bytes)
    };
    let ((), answer, complaint) = tokio::join!(say, hear, complain);
    Ok((answer?, complaint?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_agent_core::credential_providers::parse_providers;
    use serde_json::json;

    /// The shell as a program, which notes each of its calls.
    fn plugins(folder: &std::path::Path, script: &str) -> CredentialPlugins {
        let script = format!("echo call >> {}/calls\n{script}\n", folder.display());
        let config = json!({
            "kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1",
            "providers": [{
                "name": "sh", "args": ["-c", script], "matchImages": ["r.example"], "defaultCacheDuration": "10m",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "env": [{"name": "WHO", "value": "robot"}]
            }]
        });
        CredentialPlugins::new("/bin".into(), parse_providers(config).unwrap(), Arc::default())
    }

    async fn users(plugins: &CredentialPlugins, image: &str) -> Vec<String> {
        let mut keyring = Keyring::default();
        plugins.add_to(&mut keyring, image).await;
        keyring.lookup(image).into_iter().map(|auth| auth.username).collect()
    }

    const ANSWER: &str = r#"read line
case "$line" in *'"image":"r.example/'*) ;; *) exit 3;; esac
echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","auth":{"r.example":{"username":"'$WHO'","password":"p"}}}'"#;

    #[tokio::test]
    async fn a_program_is_asked_once_for_what_its_answer_is_good_for() {
        let folder = tempfile::tempdir().unwrap();
        let plugins = plugins(folder.path(), ANSWER);
        let (first, second) = tokio::join!(users(&plugins, "r.example/a"), users(&plugins, "r.example/b"));
        assert_eq!((first, second), (vec!["robot".to_owned()], vec!["robot".to_owned()]));
        assert_eq!(users(&plugins, "other.example/a").await, Vec::<String>::new());
        assert_eq!(std::fs::read_to_string(folder.path().join("calls")).unwrap(), "call\n");
        let text = plugins.metrics.text(|_| true);
        assert!(text.contains("kubelet_credential_provider_plugin_duration_count{plugin_name=\"sh\"} 1\n"), "{text}");
        assert!(!text.contains("plugin_errors_total{"), "{text}");
    }

    #[tokio::test]
    async fn a_program_that_fails_gives_nothing() {
        for script in ["cat >/dev/null; echo no >&2; exit 1", "echo nonsense", "exec head -c 2000000 /dev/zero"] {
            let folder = tempfile::tempdir().unwrap();
            let plugins = plugins(folder.path(), script);
            assert_eq!(users(&plugins, "r.example/a").await, Vec::<String>::new(), "{script}");
            let text = plugins.metrics.text(|_| true);
            assert!(text.contains("kubelet_credential_provider_plugin_errors_total{plugin_name=\"sh\"} 1\n"), "{text}");
        }
        let nowhere =
            CredentialPlugins { folder: "/nonexistent".into(), ..plugins(tempfile::tempdir().unwrap().path(), "") };
        assert_eq!(users(&nowhere, "r.example/a").await, Vec::<String>::new());
    }
}

//! Seeing that a container's image is there: policy, credentials, pull.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::allowance::PULLS_EXCEEDED;
use orlop_agent_core::containers::{self, SpecContainer};
use orlop_agent_core::images::{Keyring, PullPolicy, RegistryAuth, image_name, policy_of, pull_policy};
use orlop_agent_core::metrics::names;
use orlop_agent_core::ports::{EventType, Events};
use orlop_agent_core::pull_records::{ImageAccess, PullCredentials, PullSecret};
use orlop_agent_core::runtime::ImageFact;
use orlop_agent_core::security::ImageUser;
use tokio::time::Instant;

use crate::pull_records::PullRecords;
use crate::recorder::{container_event, pod_event};
use crate::shared::{Shared, lock};

/// An image that is there.
#[derive(Clone, Debug)]
pub(crate) struct ReadyImage {
    /// Reference to make containers with.
    pub reference: String,
    /// Its user.
    pub user: ImageUser,
    /// References of images that the container mounts, by volume.
    pub volumes: BTreeMap<String, String>,
}

/// Why an image is not there.
#[derive(Clone, Debug)]
pub(crate) struct ImageFailure {
    /// Waiting reason.
    pub reason: &'static str,
    /// The error.
    pub message: String,
}

/// Sees that the image of a container is there, and those of the image volumes that it mounts.
pub(crate) async fn ensure_image(
    shared: &Shared,
    pod: &Pod,
    container: &SpecContainer<'_>,
) -> Result<ReadyImage, ImageFailure> {
    let given = container.container.image.as_deref().unwrap_or_default();
    let policy = pull_policy(&container.container);
    let metrics = &*shared.ports.metrics;
    // A container without its image has not been started, for a reason that the kubelet counts with the others.
    let failed = |failure: ImageFailure| {
        let kind = container.kind.metric_label();
        metrics.count(&names::STARTED_CONTAINERS, &[kind]);
        metrics.count(&names::STARTED_CONTAINERS_ERRORS, &[kind, failure.reason]);
        failure
    };
    let mut ready = ensure(shared, pod, container, given, policy).await.map_err(failed)?;
    let mounted = |name: &str| container.container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    for volume in containers::spec(pod).into_iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(source) = volume.image.as_ref().filter(|_| mounted(&volume.name)) else { continue };
        let given = source.reference.as_deref().unwrap_or_default();
        let policy = policy_of(source.pull_policy.as_deref(), given);
        metrics.count(&names::IMAGE_VOLUMES_REQUESTED, &[]);
        let image = ensure(shared, pod, container, given, policy).await.map_err(failed)?;
        ready.volumes.insert(volume.name.clone(), image.reference);
    }
    Ok(ready)
}

/// Looks for an image and pulls it as its policy says.
async fn ensure(
    shared: &Shared,
    pod: &Pod,
    container: &SpecContainer<'_>,
    given: &str,
    policy: PullPolicy,
) -> Result<ReadyImage, ImageFailure> {
    let events = &*shared.ports.events;
    let name = image_name(given).map_err(|error| {
        let message = format!("Failed to apply default image tag {given:?}: {error}");
        container_event(events, pod, container, EventType::Warning, "InspectFailed", &message);
        ImageFailure { reason: "InvalidImageName", message }
    })?;
    let present = shared.ports.runtime.image(&name, "").await.map_err(|error| {
        let message = format!("Failed to inspect image {given:?}: {error}");
        container_event(events, pod, container, EventType::Warning, "InspectFailed", &message);
        ImageFailure { reason: "ImageInspectError", message }
    })?;
    match (policy, present) {
        (PullPolicy::Never, None) => Err(never_pulled(events, pod, container, given)),
        (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => {
            if !may_use(shared, pod, given, &name, &image).await {
                // Whether it is there is nobody's business who may not use it.
                return match policy {
                    PullPolicy::Never => Err(never_pulled(events, pod, container, given)),
                    _ => pull(shared, pod, container, given, &name).await,
                };
            }
            let message =
                format!("Container image {given:?} already present on machine and can be accessed by the pod");
            container_event(events, pod, container, EventType::Normal, "Pulled", &message);
            // Another pod may have pulled it meanwhile.
            shared.note_start(containers::uid(pod), |start, now| start.has_image(container.name(), now));
            Ok(ready(&name, image))
        }
        _ => pull(shared, pod, container, given, &name).await,
    }
}

fn never_pulled(events: &dyn Events, pod: &Pod, container: &SpecContainer<'_>, given: &str) -> ImageFailure {
    let message = format!("Container image {given:?} is not present with pull policy of Never");
    container_event(events, pod, container, EventType::Warning, "ErrImageNeverPull", &message);
    ImageFailure { reason: "ErrImageNeverPull", message }
}

/// Whether the pod may use an image that is there; its secrets are asked for only if that depends on them.
async fn may_use(shared: &Shared, pod: &Pod, given: &str, name: &str, image: &ImageFact) -> bool {
    if access(shared, given, &image.id, Vec::new()).await == ImageAccess::Granted {
        return true;
    }
    let keyring = pod_keyring(shared, pod).await;
    let secrets: Vec<PullSecret> = keyring.lookup(name).into_iter().filter_map(|auth| auth.source).collect();
    if secrets.is_empty() {
        return false;
    }
    match access(shared, given, &image.id, secrets).await {
        ImageAccess::Granted => true,
        ImageAccess::Denied => false,
        ImageAccess::GrantedBy(secret) => {
            let credentials = PullCredentials { kubernetes_secrets: vec![secret], ..PullCredentials::default() };
            let (records, given, id) = (shared.pull_records.clone(), given.to_owned(), image.id.clone());
            let noted = shared.config.pace.blocking(move || records.note(&given, &id, Some(credentials))).await;
            if !matches!(noted, Ok(Ok(()))) {
                tracing::warn!(image = name, ?noted, "the credentials of an image can't be recorded");
            }
            true
        }
    }
}

async fn access(shared: &Shared, given: &str, id: &str, secrets: Vec<PullSecret>) -> ImageAccess {
    let (records, given, id) = (shared.pull_records.clone(), given.to_owned(), id.to_owned());
    shared.config.pace.blocking(move || records.access(&given, &id, &secrets)).await.unwrap_or(ImageAccess::Denied)
}

fn ready(name: &str, image: ImageFact) -> ReadyImage {
    let reference = if image.id.is_empty() { name.to_owned() } else { image.id };
    ReadyImage { reference, user: image.user, volumes: BTreeMap::new() }
}

async fn pull(
    shared: &Shared,
    pod: &Pod,
    container: &SpecContainer<'_>,
    given: &str,
    name: &str,
) -> Result<ReadyImage, ImageFailure> {
    let events = &*shared.ports.events;
    let asked = Instant::now();
    let mut keyring = pod_keyring(shared, pod).await;
    shared.credential_plugins.add_to(&mut keyring, name).await;
    let Ok(_permit) = shared.pulls.acquire().await else {
        return Err(ImageFailure { reason: "ErrImagePull", message: "the agent is ending".into() });
    };
    container_event(events, pod, container, EventType::Normal, "Pulling", &format!("Pulling image {given:?}"));
    let intent = Intent::note(shared, given).await?;
    shared.note_start(containers::uid(pod), |start, now| start.awaits_image(container.name(), now));
    let begun = Instant::now();
    let result = pull_with(shared, name, &keyring.lookup(name)).await;
    let taken = begun.elapsed();
    let metrics = &*shared.ports.metrics;
    let failed = |message: String| {
        container_event(
            events,
            pod,
            container,
            EventType::Warning,
            "Failed",
            &format!("Failed to pull image {given:?}: {message}"),
        );
        let reason = ["RegistryUnavailable", "SignatureValidationFailed"]
            .into_iter()
            .find(|reason| message.contains(reason))
            .unwrap_or("ErrImagePull");
        container_event(events, pod, container, EventType::Warning, "Failed", &format!("Error: {reason}"));
        ImageFailure { reason, message }
    };
    let (reference, source) = result.map_err(failed)?;
    shared.note_start(containers::uid(pod), |start, now| start.has_image(container.name(), now));
    let image = match shared.ports.runtime.image(&reference, "").await {
        Ok(Some(image)) => image,
        _ => ImageFact { id: reference.clone(), ..ImageFact::default() },
    };
    metrics.observe(&names::IMAGE_PULL_SECONDS, &[names::image_size(image.size)], taken.as_secs_f64());
    intent.keep(shared, &image.id, source).await;
    let message = format!(
        "Successfully pulled image {given:?} in {} ({} including waiting). Image size: {} bytes.",
        seconds(taken),
        seconds(asked.elapsed()),
        image.size
    );
    container_event(events, pod, container, EventType::Normal, "Pulled", &message);
    Ok(ReadyImage { reference, user: image.user, volumes: BTreeMap::new() })
}

fn seconds(taken: std::time::Duration) -> String {
    if taken.as_secs() == 0 { format!("{}ms", taken.as_millis()) } else { format!("{:.3}s", taken.as_secs_f64()) }
}

/// A pull on record as being under way; dropped, it is over.
struct Intent {
    records: Arc<PullRecords>,
    image: String,
    kept: bool,
}

impl Intent {
    async fn note(shared: &Shared, image: &str) -> Result<Intent, ImageFailure> {
        let (records, name) = (shared.pull_records.clone(), image.to_owned());
        let noted = shared.config.pace.blocking(move || records.intend(&name)).await;
        match noted {
            Ok(Ok(())) => Ok(Intent { records: shared.pull_records.clone(), image: image.to_owned(), kept: false }),
            Ok(Err(error)) => Err(unrecorded(image, &error)),
            Err(error) => Err(unrecorded(image, &error)),
        }
    }

    /// The pull went well, with credentials from this secret or those that all pods have.
    async fn keep(mut self, shared: &Shared, image_ref: &str, source: Option<PullSecret>) {
        self.kept = true;
        let credentials = match source {
            Some(secret) => PullCredentials { kubernetes_secrets: vec![secret], ..PullCredentials::default() },
            None => PullCredentials { node_pods_accessible: true, ..PullCredentials::default() },
        };
        let (records, image, image_ref) = (self.records.clone(), self.image.clone(), image_ref.to_owned());
        let _ = shared.config.pace.blocking(move || records.pulled(&image, &image_ref, credentials)).await;
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        if !self.kept {
            self.records.over(&self.image);
        }
    }
}

fn unrecorded(image: &str, error: &dyn std::fmt::Display) -> ImageFailure {
    let message = format!("Failed to record image pull intent for container image {image:?}: {error}");
    ImageFailure { reason: "ErrImagePull", message }
}

/// Tries the credentials one after the other, and none where there are none. Returns the image's reference and the pull
/// secret that opened it.
async fn pull_with(
    shared: &Shared,
    name: &str,
    credentials: &[RegistryAuth],
) -> Result<(String, Option<PullSecret>), String> {
    if !lock(&shared.pull_allowance).take(shared.now()) {
        return Err(PULLS_EXCEEDED.to_owned());
    }
    if credentials.is_empty() {
        let pulled = shared.ports.runtime.pull_image(name, None, None).await;
        return pulled.map(|reference| (reference, None)).map_err(|error| error.message);
    }
    let mut errors: Vec<String> = Vec::new();
    for auth in credentials {
        match shared.ports.runtime.pull_image(name, Some(auth), None).await {
            Ok(reference) => return Ok((reference, auth.source.clone())),
            Err(error) if errors.contains(&error.message) => {}
            Err(error) => errors.push(error.message),
        }
    }
    Err(errors.join(", "))
}

/// Credentials of the node and of the pod's pull secrets. A secret that is missing does not stop the pull.
async fn pod_keyring(shared: &Shared, pod: &Pod) -> Keyring {
    let mut keyring = Keyring::default();
    let (root, folders) = (shared.config.kubelet_root.clone(), shared.config.credential_folders.clone());
    if let Ok(found) = shared.config.pace.blocking(move || folders.read(&root)).await {
        keyring = found;
    }
    let names = containers::spec(pod).and_then(|spec| spec.image_pull_secrets.as_deref()).unwrap_or_default();
    let namespace = containers::namespace(pod);
    let secrets = join_all(names.iter().map(|reference| shared.ports.objects.secret(namespace, &reference.name))).await;
    let mut missing = Vec::new();
    for (reference, secret) in names.iter().zip(secrets) {
        if !secret.is_ok_and(|secret| keyring.add_secret(&secret)) {
            missing.push(reference.name.as_str());
        }
    }
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        pod_event(&*shared.ports.events, pod, EventType::Warning, "FailedToRetrieveImagePullSecret", &message);
    }
    keyring
}

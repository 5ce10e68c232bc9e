//! Seeing that a container's image is there: policy, credentials, pull.

use std::time::Instant;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers::{self, SpecContainer};
use orlop_agent_core::images::{Keyring, PullPolicy, RegistryAuth, image_name, pull_policy};
use orlop_agent_core::ports::EventType;
use orlop_agent_core::runtime::ImageFact;
use orlop_agent_core::security::ImageUser;

use crate::recorder::{container_event, pod_event};
use crate::shared::Shared;

/// An image that is there.
#[derive(Clone, Debug)]
pub(crate) struct ReadyImage {
    /// Reference to make containers with.
    pub reference: String,
    /// Its user.
    pub user: ImageUser,
}

/// Why an image is not there.
#[derive(Clone, Debug)]
pub(crate) struct ImageFailure {
    /// Waiting reason.
    pub reason: &'static str,
    /// The error.
    pub message: String,
}

/// Looks for the image of a container and pulls it as its policy says.
pub(crate) async fn ensure_image(
    shared: &Shared,
    pod: &Pod,
    container: &SpecContainer<'_>,
) -> Result<ReadyImage, ImageFailure> {
    let events = &*shared.ports.events;
    let given = container.container.image.as_deref().unwrap_or_default();
    let name = image_name(given).map_err(|error| {
        let message = format!("Failed to apply default image tag {given:?}: {error}");
        container_event(events, pod, container, EventType::Warning, "InspectFailed", &message);
        ImageFailure { reason: "InvalidImageName", message }
    })?;
    let policy = pull_policy(&container.container);
    let present = shared.ports.runtime.image(&name, "").await.map_err(|error| {
        let message = format!("Failed to inspect image {given:?}: {error}");
        container_event(events, pod, container, EventType::Warning, "InspectFailed", &message);
        ImageFailure { reason: "ImageInspectError", message }
    })?;
    match (policy, present) {
        (PullPolicy::Never, None) => {
            let message = format!("Container image {given:?} is not present with pull policy of Never");
            container_event(events, pod, container, EventType::Warning, "ErrImageNeverPull", &message);
            Err(ImageFailure { reason: "ErrImageNeverPull", message })
        }
        (PullPolicy::IfNotPresent | PullPolicy::Never, Some(image)) => {
            let message =
                format!("Container image {given:?} already present on machine and can be accessed by the pod");
            container_event(events, pod, container, EventType::Normal, "Pulled", &message);
            Ok(ready(&name, image))
        }
        _ => pull(shared, pod, container, given, &name).await,
    }
}

fn ready(name: &str, image: ImageFact) -> ReadyImage {
    let reference = if image.id.is_empty() { name.to_owned() } else { image.id };
    ReadyImage { reference, user: image.user }
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
    let keyring = keyring(shared, pod).await;
    let Ok(_permit) = shared.pulls.acquire().await else {
        return Err(ImageFailure { reason: "ErrImagePull", message: "the agent is ending".into() });
    };
    container_event(events, pod, container, EventType::Normal, "Pulling", &format!("Pulling image {given:?}"));
    let begun = Instant::now();
    let result = pull_with(shared, name, &keyring.lookup(name)).await;
    let taken = begun.elapsed();
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
    let reference = result.map_err(failed)?;
    let image = match shared.ports.runtime.image(&reference, "").await {
        Ok(Some(image)) => image,
        _ => ImageFact { id: reference.clone(), ..ImageFact::default() },
    };
    let message = format!(
        "Successfully pulled image {given:?} in {} ({} including waiting). Image size: {} bytes.",
        seconds(taken),
        seconds(asked.elapsed()),
        image.size
    );
    container_event(events, pod, container, EventType::Normal, "Pulled", &message);
    Ok(ReadyImage { reference, user: image.user })
}

fn seconds(taken: std::time::Duration) -> String {
    if taken.as_secs() == 0 { format!("{}ms", taken.as_millis()) } else { format!("{:.3}s", taken.as_secs_f64()) }
}

/// Tries the credentials one after the other, and none where there are none.
async fn pull_with(shared: &Shared, name: &str, credentials: &[RegistryAuth]) -> Result<String, String> {
    if credentials.is_empty() {
        return shared.ports.runtime.pull_image(name, None, None).await.map_err(|error| error.message);
    }
    let mut errors: Vec<String> = Vec::new();
    for auth in credentials {
        match shared.ports.runtime.pull_image(name, Some(auth), None).await {
            Ok(reference) => return Ok(reference),
            Err(error) if errors.contains(&error.message) => {}
            Err(error) => errors.push(error.message),
        }
    }
    Err(errors.join(", "))
}

/// Credentials of the node and of the pod's pull secrets. A secret that is missing does not stop the pull.
async fn keyring(shared: &Shared, pod: &Pod) -> Keyring {
    let mut keyring = Keyring::default();
    if let Ok(bytes) = tokio::fs::read(shared.config.kubelet_root.join("config.json")).await {
        keyring.add_config(&bytes);
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

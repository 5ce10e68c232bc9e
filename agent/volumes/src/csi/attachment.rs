//! Waiting until a volume is attached to the node: an attacher does it, the VolumeAttachment object tells.

use std::collections::BTreeMap;
use std::time::Duration;

use orlop_agent_core::ports::PortError;
use tokio::time::Instant;

use crate::config::VolumesConfig;
use crate::csi::volume::CsiVolume;

/// Between two looks at the object.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Waits for the attachment and returns what the attacher says of it (`publish_context`).
///
/// # Errors
/// What the attacher says, or that it takes too long.
pub(super) async fn wait(config: &VolumesConfig, volume: &CsiVolume) -> Result<BTreeMap<String, String>, String> {
    let name = volume.attachment_name(&config.node_name);
    let until = Instant::now() + config.pod_deadline;
    loop {
        let seen = match config.objects.volume_attachment(&name).await {
            Ok(attachment) => {
                let status = attachment.status.clone().unwrap_or_default();
                if attachment.spec.attacher != volume.driver {
                    let other = &attachment.spec.attacher;
                    return Err(format!("VolumeAttachment {name} is of driver {other}, not of {}", volume.driver));
                }
                if attachment.metadata.deletion_timestamp.is_some() {
                    "it is being detached".to_owned()
                } else if status.attached {
                    return Ok(status.attachment_metadata.unwrap_or_default());
                } else {
                    status.attach_error.and_then(|error| error.message).unwrap_or_default()
                }
            }
            Err(PortError::NotFound { .. }) => format!("VolumeAttachment {name} does not exist yet"),
            Err(error @ PortError::Unavailable { .. }) => error.to_string(),
            Err(error) => return Err(error.to_string()),
        };
        if Instant::now() + LOOK_INTERVAL >= until {
            let driver = &volume.driver;
            return Err(format!(
                "timed out waiting for external-attacher of {driver} CSI driver to attach volume {}: {seen}",
                volume.handle
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

//! The log of a container over a WebSocket: each piece of it is a message.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::rest::answer::Body;

/// How the bytes of a log become messages (apimachinery's `wsstream`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As they are; the client may have named no form at all.
    Plain { named: bool },
    /// In base64, as text.
    Base64,
}

impl Form {
    const PLAIN: &str = "binary.k8s.io";
    const BASE64: &str = "base64.binary.k8s.io";

    /// The first one of the client's list that is known.
    fn choose(headers: &HeaderMap) -> Result<Form, ApiError> {
        let lists = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
        let offered: Vec<&str> = lists
            .iter()
            .filter_map(|list| list.to_str().ok())
            .flat_map(|list| list.split(','))
            .map(str::trim)
            .collect();
        let known = |name: &&str| match *name {
            Form::PLAIN => Some(Form::Plain { named: true }),
            Form::BASE64 => Some(Form::Base64),
            _ => None,
        };
        match offered.iter().find_map(known) {
            Some(form) => Ok(form),
            None if offered.is_empty() => Ok(Form::Plain { named: false }),
            None => Err(ApiError::bad_request(format!(
                "none of the WebSocket protocols {offered:?} is known: ask for {} or {}",
                Form::PLAIN,
                Form::BASE64
            ))),
        }
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Form::Plain { named } => named.then_some(Form::PLAIN),
            Form::Base64 => Some(Form::BASE64),
        }
    }

    fn message(self, bytes: Bytes) -> Message {
        match self {
            Form::Plain { .. } => Message::binary(bytes),
            Form::Base64 => Message::text(STANDARD.encode(bytes)),
        }
    }
}

/// Whether a request wants to become a WebSocket.
pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
}

/// Answers with a WebSocket that carries a body to its end, or until the client goes.
///
/// # Errors
/// When the client asks for what isn't there.
pub(super) fn carry(
    mut request: Request<Incoming>,
    body: Incoming,
    cancel: CancellationToken,
) -> Result<Response<Body>, ApiError> {
    let form = Form::choose(request.headers())?;
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let Some(accept) = key.and_then(|key| HeaderValue::from_str(&key).ok()) else {
        return Err(ApiError::bad_request("the header Sec-WebSocket-Key is missing"));
    };
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(name) = form.name() {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    tokio::spawn(async move {
        let upgraded = match hyper::upgrade::on(&mut request).await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "a client did not become a WebSocket"),
        };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        tokio::select! {
            () = copy(body, socket, form) => {}
            () = cancel.cancelled() => {}
        }
    });
    Ok(answer)
}

/// Sends what comes; ends with the body or with the client.
async fn copy(mut body: Incoming, mut socket: WebSocketStream<TokioIo<Upgraded>>, form: Form) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            heard = socket.next() => match heard {
                Some(Ok(message)) if !message.is_close() => continue,
                _ => return,
            },
        };
        let bytes = match frame {
            Some(Ok(frame)) => frame.into_data(),
            Some(Err(error)) => return tracing::debug!(%error, "a log broke off"),
            None => break,
        };
        let Ok(bytes) = bytes else { continue };
        if socket.send(form.message(bytes)).await.is_err() {
            return;
        }
    }
    let end = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
    if let Err(error) = socket.close(Some(end)).await {
        tracing::debug!(%error, "a WebSocket did not close well");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_form_is_taken() {
        for (offered, form) in [
            (None, Some(Form::Plain { named: false })),
            (Some("binary.k8s.io"), Some(Form::Plain { named: true })),
            (Some("other, base64.binary.k8s.io, binary.k8s.io"), Some(Form::Base64)),
            (Some("v4.channel.k8s.io"), None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(offered) = offered {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(offered));
            }
            assert_eq!(Form::choose(&headers).ok(), form, "{offered:?}");
        }
    }

    #[test]
    fn only_websockets_are_asked_for_by_that_name() {
        for (upgrade, asked) in [("websocket", true), ("WebSocket", true), ("SPDY/3.1", false)] {
            let headers = HeaderMap::from_iter([(header::UPGRADE, HeaderValue::from_static(upgrade))]);
            assert_eq!(is_asked(&headers), asked, "{upgrade}");
        }
        assert!(!is_asked(&HeaderMap::new()));
    }
}

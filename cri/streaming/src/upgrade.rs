//! The HTTP upgrade: which of the client's protocols is spoken, or why none.

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::websocket::ChannelProtocol;

/// Header that lists the protocols of a SPDY client.
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Header that tells a refused client what it could have asked for.
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// Protocol of a port-forward over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";
/// Protocol of a SPDY port-forward inside a WebSocket.
const PORT_FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Protocols of exec and attach over SPDY, with their version.
const PROCESS_VERSIONS: [(&str, u8); 5] =
    [("v4.channel.k8s.io", 4), ("v3.channel.k8s.io", 3), ("v2.channel.k8s.io", 2), ("channel.k8s.io", 1), ("", 1)];

/// What is spoken after the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// SPDY with this version of the streaming protocol.
    Spdy(u8),
    /// WebSocket channels.
    Channels(ChannelProtocol),
    /// SPDY inside a WebSocket.
    Tunnel,
}

/// Why there is no upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// 400 with this text.
    BadRequest(&'static str),
    /// 403: none of the client's protocols is known here.
    NoCommonProtocol,
}

/// Chooses among the protocols that a client offers; the first that is known wins.
pub(crate) fn negotiate(headers: &HeaderMap, port_forward: bool) -> Result<(Spoken, String), Refusal> {
    let upgrade = header_words(headers, &UPGRADE);
    if upgrade.iter().any(|word| word.eq_ignore_ascii_case("SPDY/3.1")) {
        return negotiate_spdy(headers, port_forward);
    }
    if upgrade.iter().any(|word| word.eq_ignore_ascii_case("websocket")) {
        return negotiate_websocket(headers, port_forward);
    }
    Err(Refusal::BadRequest("this URL wants an upgrade to SPDY/3.1 or websocket"))
}

fn negotiate_spdy(headers: &HeaderMap, port_forward: bool) -> Result<(Spoken, String), Refusal> {
    let mut offered = header_words(headers, &PROTOCOL_VERSION);
    if offered.is_empty() {
        if port_forward {
            return Err(Refusal::BadRequest("header X-Stream-Protocol-Version is required"));
        }
        offered.push("");
    }
    let known = |name: &&str| match port_forward {
        true => (*name == PORT_FORWARD).then_some((PORT_FORWARD, 1)),
        false => PROCESS_VERSIONS.iter().copied().find(|(known, _)| known == name),
    };
    let (name, version) = offered.iter().find_map(known).ok_or(Refusal::NoCommonProtocol)?;
    Ok((Spoken::Spdy(version), name.to_string()))
}

fn negotiate_websocket(headers: &HeaderMap, port_forward: bool) -> Result<(Spoken, String), Refusal> {
    if !headers.contains_key(SEC_WEBSOCKET_KEY) {
        return Err(Refusal::BadRequest("header Sec-WebSocket-Key is required"));
    }
    let mut offered = header_words(headers, &SEC_WEBSOCKET_PROTOCOL);
    if offered.is_empty() {
        offered.push("");
    }
    offered
        .iter()
        .find_map(|name| match (port_forward, *name) {
            (true, PORT_FORWARD_TUNNEL) => Some((Spoken::Tunnel, name.to_string())),
            (true, "v5.channel.k8s.io") => None,
            (_, name) => {
                ChannelProtocol::from_name(name).map(|protocol| (Spoken::Channels(protocol), name.to_string()))
            }
        })
        .ok_or(Refusal::NoCommonProtocol)
}

/// The comma-separated words of a header that may be repeated.
fn header_words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).collect()
}

/// The answer that switches protocols.
pub(crate) fn switching<B: Default>(headers: &HeaderMap, spoken: Spoken, name: &str) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let chosen = HeaderValue::from_str(name).ok().filter(|value| !value.is_empty());
    if let Spoken::Spdy(_) = spoken {
        answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        answer.extend(chosen.map(|value| (PROTOCOL_VERSION, value)));
        return response;
    }
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Some(key) = headers.get(SEC_WEBSOCKET_KEY)
        && let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
    {
        answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    answer.extend(chosen.map(|value| (SEC_WEBSOCKET_PROTOCOL, value)));
    response
}

/// The answer that refuses.
pub(crate) fn refuse(refusal: &Refusal, port_forward: bool) -> Response<String> {
    match refusal {
        Refusal::BadRequest(text) => {
            let mut response = Response::new(format!("{text}\n"));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
        Refusal::NoCommonProtocol => {
            let known: Vec<&str> = match port_forward {
                true => vec![PORT_FORWARD, PORT_FORWARD_TUNNEL],
                false => PROCESS_VERSIONS.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect(),
            };
            let mut response =
                Response::new(format!("none of the offered protocols is known; known are {}\n", known.join(", ")));
            *response.status_mut() = StatusCode::FORBIDDEN;
            for name in known {
                response.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn the_first_known_protocol_wins() {
        let spdy = |versions| headers(&[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", versions)]);
        let websocket =
            |names| headers(&[("upgrade", "websocket"), ("sec-websocket-key", "k"), ("sec-websocket-protocol", names)]);
        let channels = |version| Spoken::Channels(ChannelProtocol { version, base64: false });
        let table = [
            (spdy("v5.channel.k8s.io, v4.channel.k8s.io"), false, Ok(Spoken::Spdy(4))),
            (headers(&[("upgrade", "SPDY/3.1")]), false, Ok(Spoken::Spdy(1))),
            (spdy("v9"), false, Err(Refusal::NoCommonProtocol)),
            (spdy("portforward.k8s.io"), true, Ok(Spoken::Spdy(1))),
            (websocket("v5.channel.k8s.io"), false, Ok(channels(5))),
            (websocket("SPDY/3.1+portforward.k8s.io"), true, Ok(Spoken::Tunnel)),
            (websocket("v4.channel.k8s.io"), true, Ok(channels(4))),
        ];
        for (headers, port_forward, expected) in table {
            assert_eq!(negotiate(&headers, port_forward).map(|(spoken, _)| spoken), expected, "{headers:?}");
        }
        assert!(matches!(negotiate(&HeaderMap::new(), false), Err(Refusal::BadRequest(_))));
    }
}

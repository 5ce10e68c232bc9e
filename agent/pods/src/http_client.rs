//! A small HTTP client for probes and hooks: one request per connection, no proxy, no certificate check, bounded in
//! time and size.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::probe_stream::connect;

/// Most bytes of a body that are read.
const MAX_BODY: usize = 10 << 10;
/// Most redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct HttpRequest {
    pub https: bool,
    /// Host to connect to: an address or a name.
    pub host: String,
    pub port: u16,
    /// Path with query.
    pub path: String,
    /// Headers to add or, with an empty value, to take away.
    pub headers: Vec<(String, String)>,
}

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct HttpAnswer {
    pub status: u16,
    pub body: String,
    /// Where the last redirect led, when it was not followed because it leads to another host.
    pub elsewhere: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("Get {url:?}: {message}")]
    Failed { url: String, message: String },
    #[error("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Timeout { url: String },
    #[error("Get {url:?}: http: server gave HTTP response to HTTPS client")]
    PlainAnswer { url: String },
    #[error("Get {url:?}: stopped after {MAX_REDIRECTS} redirects")]
    Redirects { url: String },
}

impl HttpRequest {
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// Sends a GET and follows redirects on the same host.
pub(crate) async fn get(request: HttpRequest, timeout: Duration) -> Result<HttpAnswer, HttpError> {
    let url = request.url();
    match tokio::time::timeout(timeout, follow(request)).await {
        Ok(result) => result,
        Err(_) => Err(HttpError::Timeout { url }),
    }
}

async fn follow(mut request: HttpRequest) -> Result<HttpAnswer, HttpError> {
    let first = request.host.clone();
    for _ in 0..=MAX_REDIRECTS {
        let (answer, location) = exchange(&request).await?;
        let Some(location) = location.filter(|_| matches!(answer.status, 301 | 302 | 303 | 307 | 308)) else {
            return Ok(answer);
        };
        let Some(next) = redirected(&request, &location) else {
            return Ok(HttpAnswer { elsewhere: Some(location), ..answer });
        };
        if next.host != first {
            return Ok(HttpAnswer { elsewhere: Some(location), ..answer });
        }
        request = next;
    }
    Err(HttpError::Redirects { url: request.url() })
}

fn redirected(from: &HttpRequest, location: &str) -> Option<HttpRequest> {
    let mut next = from.clone();
    if location.starts_with("http://") || location.starts_with("https://") {
        let uri: http::Uri = location.parse().ok()?;
        next.https = uri.scheme_str() == Some("https");
        next.host = uri.host()?.trim_matches(['[', ']']).to_owned();
        next.port = uri.port_u16().unwrap_or(if next.https { 443 } else { 80 });
        next.path = uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    } else if location.starts_with('/') {
        next.path = location.to_owned();
    } else {
        let folder = from.path.split('?').next().unwrap_or("/").rsplit_once('/').map_or("", |(folder, _)| folder);
        next.path = format!("{folder}/{location}");
    }
    Some(next)
}

async fn exchange(request: &HttpRequest) -> Result<(HttpAnswer, Option<String>), HttpError> {
    let failed = |message: String| HttpError::Failed { url: request.url(), message };
    let stream = connect(&request.host, request.port)
        .await
        .map_err(|error| failed(format!("dial tcp {}: connect: {error}", request.authority())))?;
    if !request.https {
        return talk(stream, request).await;
    }
    let name = server_name(request);
    match tokio_rustls::TlsConnector::from(tls_config()).connect(name, stream).await {
        Ok(stream) => talk(stream, request).await,
        Err(error)
            if error.to_string().contains("InvalidContentType") || error.to_string().contains("corrupt message") =>
        {
            Err(HttpError::PlainAnswer { url: request.url() })
        }
        Err(error) => Err(failed(format!("tls: {error}"))),
    }
}

fn server_name(request: &HttpRequest) -> ServerName<'static> {
    let wanted = request
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("host"))
        .map_or(&request.host, |(_, value)| value);
    let bare = wanted
        .rsplit_once(':')
        .filter(|(_, port)| port.parse::<u16>().is_ok())
        .map_or(wanted.as_str(), |(host, _)| host);
    ServerName::try_from(bare.to_owned()).unwrap_or_else(|_| ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into()))
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: &HttpRequest,
) -> Result<(HttpAnswer, Option<String>), HttpError> {
    let failed = |message: String| HttpError::Failed { url: request.url(), message };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let exchange = async {
        let response = sender
            .send_request(build(request).map_err(|error| failed(error.to_string()))?)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let status = response.status().as_u16();
        let location =
            response.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        let mut frames = response.into_body();
        while body.len() < MAX_BODY {
            match frames.frame().await {
                Some(Ok(frame)) => body.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(failed(error.to_string())),
                None => break,
            }
        }
        body.truncate(MAX_BODY);
        Ok((HttpAnswer { status, body: String::from_utf8_lossy(&body).into_owned(), elsewhere: None }, location))
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    // The connection must be driven for the exchange to move; it is dropped with it.
    tokio::select! {
        biased;
        result = &mut exchange => result,
        result = &mut connection => match result {
            Ok(()) => exchange.await,
            Err(error) => match futures::poll!(&mut exchange) {
                std::task::Poll::Ready(result) => result,
                std::task::Poll::Pending => Err(failed(error.to_string())),
            },
        },
    }
}

fn build(request: &HttpRequest) -> Result<http::Request<Empty<Bytes>>, http::Error> {
    let mut headers: Vec<(String, String)> = vec![
        ("Host".into(), request.authority()),
        ("User-Agent".into(), "kube-probe/1.36".into()),
        ("Accept".into(), "*/*".into()),
        ("Connection".into(), "close".into()),
    ];
    let mut replaced: Vec<String> = Vec::new();
    for (name, value) in &request.headers {
        if !replaced.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            replaced.push(name.clone());
        }
        if !value.is_empty() {
            headers.push((name.clone(), value.clone()));
        }
    }
    let mut builder = http::Request::get(if request.path.starts_with('/') {
        request.path.clone()
    } else {
        format!("/{}", request.path)
    });
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    builder.body(Empty::new())
}

fn tls_config() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let make = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        // The versions are those that the provider was built with; it can't lack them.
        let builder = builder.expect("the TLS provider supports the default versions");
        Arc::new(
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(schemes)))
                .with_no_client_auth(),
        )
    };
    CONFIG.get_or_init(make).clone()
}

/// Takes every certificate: a probe asks whether a server answers, not who it is.
#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests;

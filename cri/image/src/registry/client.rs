//! One session per pull and server: requests with retries, redirects without secrets, authentication when asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::{Mutex, OnceCell};

use super::config::{Credentials, RegistriesConfig, host_of};
use super::endpoint::{Endpoint, endpoints};
use super::sources::Sources;
use super::transport::{Transport, chain};
use super::trust::{NamedFile, Trust};
use super::{RegistryError, auth, challenge, docker_config};
use crate::reference::Reference;

/// Most redirects followed for one request.
const REDIRECTS_MAX: usize = 5;
/// Longest error body read, in bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Talks to any number of registries.
pub struct RegistryClient {
    pub(super) config: Arc<RegistriesConfig>,
    pub(super) transport: Transport,
}

/// Talks to one repository on one server with one set of credentials.
pub struct Session {
    pub(super) client: Arc<RegistryClient>,
    /// How messages call the server.
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) endpoint: Endpoint,
    /// Found when the server first asks for some.
    credentials: OnceCell<Option<Credentials>>,
    /// What the server accepted last. Sent to its own origin only.
    authorization: Mutex<Option<HeaderValue>>,
    /// Another server can be asked, so this one isn't waited for long.
    is_spare: bool,
    /// It didn't answer, or failed, when it was asked last.
    is_down: AtomicBool,
    /// It gave bytes that are not those of the digest.
    is_distrusted: AtomicBool,
}

/// What to ask the registry for.
pub(super) struct Request<'a> {
    /// Path below the repository.
    pub path: String,
    /// Media types we understand.
    pub accept: &'a [&'a str],
    /// First byte wanted; 0 asks for everything.
    pub offset: u64,
}

/// What one try came to.
enum Answer {
    Good(Response),
    Challenged(Vec<challenge::Challenge>, String),
    /// Worth another try after this wait, if given.
    Again(String, Option<Duration>, bool),
    /// No answer, or a server that doesn't work: another one may, this one perhaps later.
    Down(String),
}

impl RegistryClient {
    /// A client with this configuration. Connects to nothing yet.
    pub fn new(config: RegistriesConfig) -> Self {
        Self { transport: Transport::default(), config: Arc::new(config) }
    }

    /// The servers that have the repository of a reference, by the settings that hold now. Credentials of the pull win
    /// over configured ones.
    pub async fn sources(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Sources>, RegistryError> {
        let registry = reference.registry().to_owned();
        let failed = |why: String| RegistryError::Configuration { registry: registry.clone(), why };
        let (config, name) = (Arc::clone(&self.config), registry.clone());
        let found = tokio::task::spawn_blocking(move || endpoints(&config, &name))
            .await
            .map_err(|error| failed(error.to_string()))??;
        let last = found.len() - 1;
        let given = credentials.filter(|given| !given.is_empty());
        let sessions = found.into_iter().enumerate().map(|(number, endpoint)| {
            let mine = given.clone().filter(|_| !endpoint.is_mirror || self.config.mirrors_get_credentials);
            self.session(endpoint, reference.repository(), mine, number < last)
        });
        Ok(Arc::new(Sources::new(sessions.collect())))
    }

    fn session(
        self: &Arc<Self>,
        endpoint: Endpoint,
        repository: &str,
        credentials: Option<Credentials>,
        is_spare: bool,
    ) -> Arc<Session> {
        let configured = || self.config.host(&endpoint.name).credentials.filter(|given| !given.is_empty());
        let credentials = credentials.or_else(configured);
        let token = credentials.as_ref().map(|given| given.registry_token.as_str()).filter(|token| !token.is_empty());
        let authorization = token.and_then(|token| auth::secret_header(&format!("Bearer {token}")));
        Arc::new(Session {
            client: Arc::clone(self),
            registry: endpoint.name.clone(),
            repository: repository.to_owned(),
            endpoint,
            // Docker's file may have some where there are none.
            credentials: credentials.map_or_else(OnceCell::new, |given| OnceCell::new_with(Some(Some(given)))),
            authorization: Mutex::new(authorization),
            is_spare,
            is_down: AtomicBool::new(false),
            is_distrusted: AtomicBool::new(false),
        })
    }
}

impl Session {
    /// What to show this server: of the pull, of its configuration, or from Docker's file.
    pub(super) async fn credentials(&self) -> Result<Option<&Credentials>, RegistryError> {
        let find = async || {
            let Some(path) = &self.client.config.docker_config else { return Ok(None) };
            docker_config::find(path, &self.registry, &self.repository)
                .await
                .map_err(|why| RegistryError::Configuration { registry: self.registry.clone(), why })
        };
        Ok(self.credentials.get_or_try_init(find).await?.as_ref())
    }

    /// Whether it failed to answer when asked last, or lied, and others can be asked.
    pub(super) fn is_avoided(&self) -> bool {
        self.is_spare && (self.is_down.load(Ordering::Relaxed) || self.is_distrusted.load(Ordering::Relaxed))
    }

    /// Asks it nothing more in this pull, if others can be asked; tells whether they can.
    pub(super) fn distrust(&self) -> bool {
        self.is_distrusted.store(self.is_spare, Ordering::Relaxed);
        self.is_spare
    }

    /// The HTTP client for a URL that this server named, or its own. The certificates of our own and `skip_verify` are for
    /// its own host; its authorities are also believed about the servers that it sends us to.
    pub(super) fn http(&self, url: &Url) -> Result<reqwest::Client, RegistryError> {
        let (target, own) = (authority(url), authority(&self.endpoint.root));
        let (connect_timeout, proxy) = (self.endpoint.connect_timeout, self.endpoint.proxy.as_ref());
        let transport = &self.client.transport;
        let client = if host_of(&target) == host_of(&own) {
            transport.client(&target, &self.endpoint.trust, connect_timeout, proxy)
        } else if let Some(path) = self.client.config.host(&target).ca_file {
            let file = NamedFile { setting: "caFile".into(), path };
            let trust = Trust { authorities: vec![file], ..Trust::default() }.load();
            trust.and_then(|trust| transport.client(&target, &trust, connect_timeout, proxy))
        } else {
            transport.client(&target, &self.endpoint.trust.for_others(), connect_timeout, proxy)
        };
        client.map_err(|why| RegistryError::Configuration { registry: self.registry.clone(), why })
    }

    pub(super) fn protocol(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Protocol { registry: self.registry.clone(), why: why.into() }
    }

    /// Asks until there is an answer with content, a final refusal, or no try left.
    pub(super) async fn get(&self, request: &Request<'_>) -> Result<Response, RegistryError> {
        let config = &self.client.config;
        let mut authenticated = false;
        let mut tries = 0;
        loop {
            let (detail, wait, limited) = match self.attempt(request).await? {
                Answer::Good(response) => {
                    self.is_down.store(false, Ordering::Relaxed);
                    return Ok(response);
                }
                Answer::Challenged(_, detail) if authenticated => {
                    return Err(RegistryError::Unauthorized { registry: self.registry.clone(), detail });
                }
                Answer::Challenged(challenges, detail) => {
                    let authorization = auth::answer(self, &challenges, &detail).await?;
                    *self.authorization.lock().await = Some(authorization);
                    authenticated = true;
                    continue;
                }
                Answer::Down(detail) => {
                    self.is_down.store(true, Ordering::Relaxed);
                    if self.is_spare {
                        return Err(RegistryError::Unavailable { registry: self.registry.clone(), tries: 1, detail });
                    }
                    (detail, None, false)
                }
                Answer::Again(detail, wait, limited) => (detail, wait, limited),
            };
            tries += 1;
            let longest = Duration::from_secs(config.retry_after_max_seconds);
            if tries >= config.tries_max || wait.is_some_and(|wait| wait > longest) {
                return Err(if limited {
                    RegistryError::RateLimited { registry: self.registry.clone() }
                } else {
                    RegistryError::Unavailable { registry: self.registry.clone(), tries, detail }
                });
            }
            tracing::debug!(registry = %self.registry, path = %request.path, tries, detail, "registry request is tried again");
            tokio::time::sleep(wait.unwrap_or_else(|| config.wait_before(tries))).await;
        }
    }

    async fn attempt(&self, request: &Request<'_>) -> Result<Answer, RegistryError> {
        let origin = self.endpoint.url(&self.repository, &request.path);
        let mut url = origin.clone();
        for _ in 0..=REDIRECTS_MAX {
            let own = same_origin(&url, &origin);
            let response = match self.send(&url, request, own).await? {
                Ok(response) => response,
                Err(detail) => return Ok(Answer::Down(detail)),
            };
            if matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                url = self.redirected(&url, &response)?;
                continue;
            }
            return self.judge(response, own, request).await;
        }
        Err(self.protocol(format!("more than {REDIRECTS_MAX} redirects for {}", request.path)))
    }

    async fn send(
        &self,
        url: &Url,
        request: &Request<'_>,
        own: bool,
    ) -> Result<Result<Response, String>, RegistryError> {
        let mut builder = self.http(url)?.get(url.clone());
        for accept in request.accept {
            builder = builder.header(ACCEPT, *accept);
        }
        if request.offset > 0 {
            builder = builder.header(RANGE, format!("bytes={}-", request.offset));
        }
        if own {
            builder = builder.headers(self.endpoint.headers.clone());
        }
        // A secret for the registry is shown to the registry only, whatever it redirects to.
        if own && let Some(authorization) = self.authorization.lock().await.clone() {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        let stall = self.client.config.stall_timeout();
        Ok(match tokio::time::timeout(stall, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(chain(&error.without_url())),
            Err(_) => Err(format!("no answer within {} s", stall.as_secs())),
        })
    }

    fn redirected(&self, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.protocol("a redirect without a Location"))?;
        let to = from.join(location).map_err(|error| self.protocol(format!("redirect to {location:.200}: {error}")))?;
        if !matches!(to.scheme(), "http" | "https") || (from.scheme() == "https" && to.scheme() != "https") {
            return Err(self.protocol(format!(
                "redirect from {} to {}, which is not safe",
                from.scheme(),
                to.scheme()
            )));
        }
        if auth::is_link_local(&authority(&to)) {
            return Err(self.protocol("redirect to a link-local address"));
        }
        Ok(to)
    }

    async fn judge(&self, response: Response, own: bool, request: &Request<'_>) -> Result<Answer, RegistryError> {
        let status = response.status();
        let registry = self.registry.clone();
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(Answer::Good(response)),
            StatusCode::UNAUTHORIZED if own => {
                let challenges = response
                    .headers()
                    .get_all(WWW_AUTHENTICATE)
                    .iter()
                    .filter_map(|value| value.to_str().ok())
                    .flat_map(challenge::parse)
                    .collect();
                Ok(Answer::Challenged(challenges, error_detail(response).await))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(RegistryError::Denied { registry, detail: error_detail(response).await })
            }
            StatusCode::NOT_FOUND => Err(RegistryError::NotFound {
                registry,
                what: format!("{} of {}", request.path.replace('/', " "), self.repository),
            }),
            StatusCode::TOO_MANY_REQUESTS => {
                Ok(Answer::Again("429 Too Many Requests".into(), retry_after(&response), true))
            }
            StatusCode::REQUEST_TIMEOUT => Ok(Answer::Again("408 Request Timeout".into(), None, false)),
            status if status.is_server_error() => {
                let wait = retry_after(&response);
                let detail = format!("{status} {}", error_detail(response).await);
                Ok(if self.is_spare { Answer::Down(detail) } else { Answer::Again(detail, wait, false) })
            }
            status => Err(self.protocol(format!("{status} for {}: {}", request.path, error_detail(response).await))),
        }
    }
}

/// `host[:port]` of a URL.
pub(super) fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        _ => String::new(),
    }
}

fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && host_of(&authority(a)) == host_of(&authority(b))
        && a.port_or_known_default() == b.port_or_known_default()
}

/// `Retry-After`: seconds, or a date.
fn retry_after(response: &Response) -> Option<Duration> {
    parse_retry_after(response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim(), jiff::Timestamp::now())
}

fn parse_retry_after(text: &str, now: jiff::Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// What a registry says in an error body (`errors[].message`), made fit for one line of an event.
pub(super) async fn error_detail(mut response: Response) -> String {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Ok(Some(chunk))) = tokio::time::timeout(Duration::from_secs(5), response.chunk()).await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_BYTES_MAX {
            break;
        }
    }
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let message = parsed.as_ref().and_then(|value| {
        let first = &value["errors"][0];
        first["message"].as_str().or_else(|| first["code"].as_str()).or_else(|| value["details"].as_str())
    });
    let text = message.map_or_else(|| status.to_string(), str::to_owned);
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "2026-03-01T12:00:00Z".parse().unwrap();
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("Sun, 01 Mar 2026 12:00:07 GMT", Some(7)),
            ("Sun, 01 Mar 2026 11:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(parse_retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}

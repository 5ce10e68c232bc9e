//! Who makes a request and whether they may: the first thing that happens to each.

use std::sync::Arc;

use http::{HeaderMap, Method, header};
use orlop_agent_core::ports::{Access, User};

use crate::answers::Refusal;

/// Group of users without credentials.
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Longest bearer token that is looked at, in bytes.
const TOKEN_MAX: usize = 16 << 10;

/// How requests are authorised (`authorization.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authorization {
    /// The API server is asked.
    #[default]
    Webhook,
    /// Whoever is authenticated may do everything.
    AlwaysAllow,
}

/// The door of the kubelet port.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) access: Option<Arc<dyn Access>>,
    pub(crate) authorization: Authorization,
    pub(crate) anonymous: bool,
    pub(crate) node_name: String,
}

impl Gate {
    /// Lets a request in, or tells why not. `certificate` is the user of a verified client certificate.
    pub(crate) async fn admit(
        &self,
        certificate: Option<&User>,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<User, Refusal> {
        let user = self.authenticate(certificate, headers).await?;
        if self.authorization == Authorization::AlwaysAllow {
            return Ok(user);
        }
        let Some(access) = &self.access else {
            let text = "Forbidden: this node has no API server to ask; set authorization.mode to AlwaysAllow";
            return Err(Refusal::forbidden(text.to_owned()));
        };
        let (verb, subresources) = (verb(method, path), subresources(path));
        for subresource in subresources {
            match access.authorize(&user, verb, subresource).await {
                Ok(true) => return Ok(user),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, user = %user.name, "access to the node can't be checked");
                    return Err(Refusal::internal(format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource(s)={subresources:?})",
                        user.name
                    )));
                }
            }
        }
        let text = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes/{}, subresource(s)=[{}])",
            user.name,
            self.node_name,
            subresources.join(" ")
        );
        Err(Refusal::forbidden(text))
    }

    async fn authenticate(&self, certificate: Option<&User>, headers: &HeaderMap) -> Result<User, Refusal> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        if let (Some(token), Some(access)) = (bearer_token(headers), &self.access) {
            match access.authenticate(token).await {
                Ok(Some(user)) => return Ok(user),
                Ok(None) => return Err(Refusal::unauthorized()),
                Err(error) => {
                    tracing::warn!(%error, "a bearer token can't be checked");
                    return Err(Refusal::unauthorized());
                }
            }
        }
        if self.anonymous {
            let groups = vec![UNAUTHENTICATED.to_owned()];
            return Ok(User { name: "system:anonymous".to_owned(), uid: String::new(), groups });
        }
        Err(Refusal::unauthorized())
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_MAX).then_some(token)
}

/// The verb of a request. Whatever starts or joins a process is `create`, also when a WebSocket asks for it by GET:
/// a right to read must not be a right to run.
fn verb(method: &Method, path: &str) -> &'static str {
    if matches!(first_segment(path), "exec" | "attach" | "portForward" | "run") {
        return "create";
    }
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// Subresources of the node that allow a path; one of them is enough (fine-grained kubelet authorisation, KEP-2862).
fn subresources(path: &str) -> &'static [&'static str] {
    match first_segment(path) {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" | "flagz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

fn first_segment(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_agent_core::ports::{PortError, PortFuture};

    #[test]
    fn paths_map_to_subresources_and_verbs() {
        let cases: [(Method, &str, &str, &[&str]); 14] = [
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/runningpods/", "get", &["pods", "proxy"]),
            (Method::GET, "/healthz/syncloop", "get", &["healthz", "proxy"]),
            (Method::GET, "/metrics/cadvisor", "get", &["metrics"]),
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::GET, "/logs/messages", "get", &["log"]),
            (Method::GET, "/configz", "get", &["configz", "proxy"]),
            (Method::GET, "/containerLogs/ns/p/c", "get", &["proxy"]),
            (Method::GET, "/exec/ns/p/c", "create", &["proxy"]),
            (Method::POST, "/exec/ns/p/c", "create", &["proxy"]),
            (Method::GET, "//attach/ns/p/c", "create", &["proxy"]),
            (Method::GET, "/portForward/ns/p", "create", &["proxy"]),
            (Method::PUT, "/run/ns/p/c", "create", &["proxy"]),
            (Method::DELETE, "/anything", "delete", &["proxy"]),
        ];
        for (method, path, want_verb, want) in cases {
            assert_eq!((verb(&method, path), subresources(path)), (want_verb, want), "{method} {path}");
        }
    }

    struct Rights;

    impl Access for Rights {
        fn authenticate<'a>(&'a self, token: &'a str) -> PortFuture<'a, Result<Option<User>, PortError>> {
            let user = User { name: token.to_owned(), uid: String::new(), groups: Vec::new() };
            Box::pin(async move { Ok((token != "bad").then_some(user)) })
        }

        fn authorize<'a>(
            &'a self,
            user: &'a User,
            verb: &'a str,
            sub: &'a str,
        ) -> PortFuture<'a, Result<bool, PortError>> {
            Box::pin(
                async move { Ok(user.name == "root" || (user.name == "reader" && verb == "get" && sub == "proxy")) },
            )
        }
    }

    #[tokio::test]
    async fn the_door_lets_in_whom_it_should() {
        let gate = Gate {
            access: Some(Arc::new(Rights)),
            authorization: Authorization::Webhook,
            anonymous: false,
            node_name: "n".into(),
        };
        let open = Gate { authorization: Authorization::AlwaysAllow, anonymous: true, ..gate.clone() };
        let alone = Gate { access: None, ..gate.clone() };
        let cases: [(&str, &Gate, Option<&str>, &str, u16); 9] = [
            ("no credentials", &gate, None, "/pods", 401),
            ("bad token", &gate, Some("Bearer bad"), "/pods", 401),
            ("not a bearer", &gate, Some("Basic root"), "/pods", 401),
            ("may", &gate, Some("Bearer root"), "/exec/a/b/c", 200),
            ("second subresource", &gate, Some("bearer reader"), "/pods", 200),
            ("a reader may not run", &gate, Some("Bearer reader"), "/exec/a/b/c", 403),
            ("a stranger", &gate, Some("Bearer x"), "/pods", 403),
            ("anonymous, always allowed", &open, None, "/exec/a/b/c", 200),
            ("nobody to ask", &alone, Some("Bearer root"), "/pods", 401),
        ];
        for (what, gate, authorization, path, want) in cases {
            let mut headers = HeaderMap::new();
            if let Some(value) = authorization {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            let got = gate.admit(None, &Method::GET, path, &headers).await;
            assert_eq!(got.map_or_else(|refusal| refusal.status.as_u16(), |_| 200), want, "{what}");
        }
        let certificate = User { name: "root".into(), uid: String::new(), groups: Vec::new() };
        assert!(gate.admit(Some(&certificate), &Method::GET, "/pods", &HeaderMap::new()).await.is_ok());
    }
}

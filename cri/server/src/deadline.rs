//! Deadlines of callers: a call that takes longer than its caller allows ends with DEADLINE_EXCEEDED, which the kubelet
//! tells apart from a call that somebody has cancelled.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tonic::Status;
use tower::{Layer, Service};

/// How much earlier than the transport's own timer, which would say CANCELLED.
const AHEAD: Duration = Duration::from_millis(1);

/// Ends calls by the deadline in their headers.
#[derive(Clone, Copy)]
pub(crate) struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner }
    }
}

/// A service whose calls have deadlines.
#[derive(Clone)]
pub(crate) struct Limited<S> {
    inner: S,
}

impl<S, Q, R> Service<http::Request<Q>> for Limited<S>
where
    S: Service<http::Request<Q>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        let header = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
        let limit = header.and_then(parse);
        let answer = self.inner.call(request);
        let Some(limit) = limit else { return Box::pin(answer) };
        Box::pin(async move {
            match tokio::time::timeout(limit - AHEAD.min(limit / 2), answer).await {
                Ok(answer) => answer,
                Err(_) => Ok(Status::deadline_exceeded(format!("not done within {limit:?}")).into_http()),
            }
        })
    }
}

/// A time as gRPC writes it: up to eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [
            ("1m", Some(Duration::from_millis(1))),
            ("2S", Some(Duration::from_secs(2))),
            ("999999u", Some(Duration::from_micros(999_999))),
            ("1H", Some(Duration::from_secs(3600))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5x", None),
            ("1é", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_late_call_has_its_own_code() {
        let never = tower::service_fn(|_: http::Request<()>| async {
            std::future::pending::<Result<http::Response<String>, std::convert::Infallible>>().await
        });
        let request = http::Request::builder().header("grpc-timeout", "1m").body(()).unwrap();
        let response = Deadlines.layer(never).call(request).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "4");
    }
}

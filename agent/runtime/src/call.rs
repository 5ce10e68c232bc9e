//! Deadlines of calls, how they are counted, and the words of their errors.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use orlop_agent_core::metrics::{Metrics, names};
use orlop_agent_core::runtime::{RuntimeError, RuntimeFailure};
use tokio::time::Instant;
use tonic::{Code, Response, Status};

/// A call under way. It is counted when it ends, and as one that failed unless it was [`Operation::ended`] well: one that
/// is given up has failed too, as for the kubelet.
#[derive(Debug)]
pub(crate) struct Operation {
    metrics: Arc<Metrics>,
    name: &'static str,
    begun: Instant,
    failed: bool,
}

impl Operation {
    /// A call that begins now, by the kubelet's word for it (`instrumented_services.go`).
    pub(crate) fn begin(metrics: &Arc<Metrics>, name: &'static str) -> Operation {
        Operation { metrics: metrics.clone(), name, begun: Instant::now(), failed: true }
    }

    /// It ended, well or not.
    pub(crate) fn ended(mut self, well: bool) {
        self.failed = !well;
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let labels = [self.name];
        self.metrics.count(&names::RUNTIME_OPERATIONS, &labels);
        self.metrics.observe(&names::RUNTIME_OPERATIONS_SECONDS, &labels, self.begun.elapsed().as_secs_f64());
        if self.failed {
            self.metrics.count(&names::RUNTIME_OPERATIONS_ERRORS, &labels);
        }
    }
}

/// Awaits an answer until the deadline.
pub(crate) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(from_status(&status)),
        Err(_) => Err(RuntimeError {
            failure: RuntimeFailure::Deadline,
            message: "rpc error: code = DeadlineExceeded desc = context deadline exceeded".to_owned(),
        }),
    }
}

/// An error as the kubelet words it.
pub(crate) fn from_status(status: &Status) -> RuntimeError {
    let failure = match status.code() {
        Code::NotFound => RuntimeFailure::NotFound,
        Code::DeadlineExceeded => RuntimeFailure::Deadline,
        Code::Unavailable => RuntimeFailure::Unavailable,
        Code::Unimplemented => RuntimeFailure::Unimplemented,
        _ => RuntimeFailure::Other,
    };
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    RuntimeError { failure, message: format!("rpc error: code = {code} desc = {}", status.message()) }
}

/// What is gone needs no stopping and no removing.
pub(crate) fn gone_is_done(result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    match result {
        Err(error) if error.failure == RuntimeFailure::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_however_they_end() {
        let metrics = Arc::new(Metrics::default());
        for (name, well) in [("status", Some(true)), ("version", Some(false)), ("pull_image", None)] {
            let operation = Operation::begin(&metrics, name);
            if let Some(well) = well {
                operation.ended(well);
            }
        }
        let text = metrics.text(|metric| metric.name.starts_with("kubelet_runtime_operations"));
        for (series, want) in [
            ("total{operation_type=\"status\"}", Some(1)),
            ("total{operation_type=\"version\"}", Some(1)),
            ("total{operation_type=\"pull_image\"}", Some(1)),
            ("errors_total{operation_type=\"status\"}", None),
            ("errors_total{operation_type=\"version\"}", Some(1)),
            ("errors_total{operation_type=\"pull_image\"}", Some(1)),
            ("duration_seconds_count{operation_type=\"status\"}", Some(1)),
            ("duration_seconds_bucket{operation_type=\"pull_image\",le=\"745.0580596923828\"}", Some(1)),
        ] {
            let series = format!("kubelet_runtime_operations_{series} ");
            let found = text.lines().find_map(|line| line.strip_prefix(series.as_str())).map(|count| count.parse());
            assert_eq!(found, want.map(Ok), "{series}in {text}");
        }
    }
}

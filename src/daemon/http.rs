//! Health, readiness and metrics over HTTP.
//!
//! Health says that the loop turns and nothing else: a missed objective must never get a running backup killed.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Shown;
use crate::clock::World;
use crate::error::{Error, Result};
use crate::secret::SecretText;

/// The loop is woken every second; when it has not turned for so long, it hangs.
const ALIVE: Duration = Duration::from_secs(120);
/// How long open connections may hold up the end.
const END: Duration = Duration::from_secs(2);

/// What the handlers see.
#[derive(Clone)]
struct Seen {
    shown: Arc<Mutex<Shown>>,
    token: Option<Arc<SecretText>>,
    world: World,
}

impl Seen {
    fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A server that goes on in the background.
pub struct Server {
    work: JoinHandle<std::io::Result<()>>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Waits for its end, which the daemon's token begins.
    pub async fn end(self) {
        if tokio::time::timeout(END, self.work).await.is_err() {
            tracing::debug!("HTTP connections are cut");
        }
    }
}

/// Listens, until the token is cancelled.
///
/// # Errors
/// The address is taken or not this host's.
pub async fn serve(
    listen: SocketAddr,
    token: Option<SecretText>,
    shown: Arc<Mutex<Shown>>,
    world: World,
    cancel: CancellationToken,
) -> Result<Server> {
    let failed = |e| {
        Error::failed(format!("can not listen on {listen}"))
            .hint("Another daemon may have it: set http.listen to an address that is free.")
            .because(e)
    };
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let seen = Seen {
        shown,
        token: token.map(Arc::new),
        world,
    };
    let router = Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(seen);
    let work = tokio::spawn(async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(async move { cancel.cancelled().await })
            .await
    });
    tracing::info!(address = %address, "listening");
    Ok(Server { work, address })
}

/// Asks the daemon that listens there whether its loop turns; gives what it says.
///
/// # Errors
/// It does not, or nobody listens.
pub async fn ask_alive(listen: SocketAddr) -> Result<String> {
    // Who listens everywhere listens here.
    let mut at = listen;
    if at.ip().is_unspecified() {
        at.set_ip(if at.is_ipv6() {
            std::net::Ipv6Addr::LOCALHOST.into()
        } else {
            std::net::Ipv4Addr::LOCALHOST.into()
        });
    }
    let failed = |e: reqwest::Error| {
        Error::failed(format!("no daemon answers on {at}"))
            .hint("`backup daemon` listens where http.listen of its policy says.")
            .because(e.without_url())
    };
    let client = reqwest::Client::builder()
        .timeout(END * 5)
        .no_proxy()
        .build()
        .map_err(failed)?;
    let answer = client
        .get(format!("http://{at}/healthz"))
        .send()
        .await
        .map_err(failed)?;
    let status = answer.status();
    let said = answer.text().await.map_err(failed)?.trim().to_owned();
    if status.is_success() {
        return Ok(said);
    }
    Err(Error::failed(format!("the daemon on {at} does not turn: {said}")))
}

/// The loop turns.
async fn alive(State(seen): State<Seen>) -> Response {
    let shown = seen.shown();
    let Some(turned) = shown.turned else {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response();
    };
    let since = seen.world.clock.since_boot().saturating_sub(turned);
    if since > ALIVE {
        let text = format!("the loop has not turned for {} s\n", since.as_secs());
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    (StatusCode::OK, "alive\n").into_response()
}

/// The repository was reached, and every schedule is loaded.
async fn ready(State(seen): State<Seen>) -> Response {
    let shown = seen.shown();
    let code = if shown.turned.is_some() && !shown.stopping && shown.tasks.iter().all(|t| t.known) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, format!("{}\n", shown.sentence())).into_response()
}

async fn metrics(State(seen): State<Seen>, headers: HeaderMap) -> Response {
    let Some(token) = &seen.token else {
        let text = "metrics need a token: set http.token in the policy\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
    // Compared by digest, so that the time tells nothing.
    let same = given.is_some_and(|given| blake3::hash(given) == blake3::hash(token.expose().as_bytes()));
    if !same {
        return (StatusCode::UNAUTHORIZED, "wrong or missing token\n").into_response();
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], exposition(&seen.shown())).into_response()
}

/// The metrics as Prometheus reads them (its text format 0.0.4). Timestamps of what succeeded, never a last status.
pub fn exposition(shown: &Shown) -> String {
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, f64)>| {
        if samples.is_empty() {
            return;
        }
        // Writing to a String can not fail.
        let _ = writeln!(
            out,
            "# HELP lifeboat_{name} {help}\n# TYPE lifeboat_{name} {kind}"
        );
        for (labels, value) in samples {
            let _ = writeln!(out, "lifeboat_{name}{labels} {value}");
        }
    };
    let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    family(
        "build_info",
        "gauge",
        "The version that runs.",
        vec![(version, 1.0)],
    );
    let of_tasks = |value: &dyn Fn(&super::board::ShownTask) -> Option<f64>| -> Vec<(String, f64)> {
        let sample = |t: &super::board::ShownTask| Some((format!("{{task=\"{}\"}}", t.key), value(t)?));
        shown.tasks.iter().filter_map(sample).collect()
    };
    let seconds = |at: Option<DateTime<Utc>>| at.map(|at| at.timestamp_millis() as f64 / 1000.0);
    family(
        "last_success_timestamp_seconds",
        "gauge",
        "When a slot was done last.",
        of_tasks(&|t| seconds(t.totals.last_done)),
    );
    family(
        "last_attempt_timestamp_seconds",
        "gauge",
        "When a slot was begun last.",
        of_tasks(&|t| seconds(t.totals.last_begun)),
    );
    family(
        "next_run_timestamp_seconds",
        "gauge",
        "When the next one begins.",
        of_tasks(&|t| seconds(t.next)),
    );
    family(
        "rpo_target_seconds",
        "gauge",
        "The recovery point objective.",
        of_tasks(&|t| t.rpo.map(|d| d.as_secs_f64())),
    );
    family(
        "running",
        "gauge",
        "Whether a slot is under way.",
        of_tasks(&|t| Some(f64::from(u8::from(t.running.is_some())))),
    );
    family(
        "waiting",
        "gauge",
        "Whether a slot waits for its turn.",
        of_tasks(&|t| Some(f64::from(u8::from(t.waiting.is_some())))),
    );
    let results = shown.tasks.iter().flat_map(|t| {
        let totals = [
            ("done", t.totals.done),
            ("failed", t.totals.failed),
            ("interrupted", t.totals.interrupted),
        ];
        totals.map(|(result, n)| {
            (
                format!("{{task=\"{}\",result=\"{result}\"}}", t.key),
                f64::from(n),
            )
        })
    });
    family(
        "runs_total",
        "counter",
        "Slots by how they ended, over all restarts.",
        results.collect(),
    );
    family(
        "slots_passed_total",
        "counter",
        "Slots that no run answered for, over all restarts.",
        of_tasks(&|t| Some(f64::from(t.totals.passed))),
    );
    family(
        "trouble_since_timestamp_seconds",
        "gauge",
        "Since when slots are not done.",
        of_tasks(&|t| seconds(t.trouble)),
    );
    family(
        "notices_owed",
        "gauge",
        "Notices that nobody took yet.",
        vec![(String::new(), f64::from(shown.owed))],
    );
    if let Some((at, taken)) = shown.reload {
        family(
            "config_reload_success",
            "gauge",
            "Whether the policy on disk is the one in use.",
            vec![(String::new(), f64::from(u8::from(taken)))],
        );
        family(
            "config_reload_timestamp_seconds",
            "gauge",
            "When the policy was read anew last.",
            vec![(String::new(), at.timestamp_millis() as f64 / 1000.0)],
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::board::ShownTask;
    use super::*;
    use crate::state::ledger::Totals;

    fn shown() -> Shown {
        let at = |text: &str| Some(text.parse::<DateTime<Utc>>().unwrap());
        let task = |key: &str, last_done| ShownTask {
            key: key.to_owned(),
            next: at("2026-11-26T11:00:00Z"),
            running: at("2026-11-26T10:00:00Z"),
            waiting: None,
            known: true,
            rpo: Some(Duration::from_secs(7200)),
            totals: Totals {
                done: 7,
                failed: 2,
                interrupted: 1,
                passed: 3,
                last_begun: at("2026-11-26T10:00:00.5Z"),
                last_done,
            },
            trouble: at("2026-11-26T09:00:00Z"),
        };
        Shown {
            tasks: vec![task("run app", at("2026-11-26T09:00:02Z")), task("run new", None)],
            reload: Some(("2026-11-26T08:00:00Z".parse().unwrap(), true)),
            owed: 4,
            turned: Some(Duration::from_secs(1)),
            stopping: false,
        }
    }

    #[test]
    fn the_exposition_is_what_it_was() {
        let text = exposition(&shown());
        for line in [
            "# TYPE lifeboat_last_success_timestamp_seconds gauge",
            "lifeboat_last_success_timestamp_seconds{task=\"run app\"} 1795683602",
            "lifeboat_last_attempt_timestamp_seconds{task=\"run app\"} 1795687200.5",
            "lifeboat_next_run_timestamp_seconds{task=\"run new\"} 1795690800",
            "lifeboat_rpo_target_seconds{task=\"run app\"} 7200",
            "# TYPE lifeboat_runs_total counter",
            "lifeboat_runs_total{task=\"run app\",result=\"done\"} 7",
            "lifeboat_runs_total{task=\"run app\",result=\"failed\"} 2",
            "lifeboat_runs_total{task=\"run app\",result=\"interrupted\"} 1",
            "lifeboat_slots_passed_total{task=\"run app\"} 3",
            "lifeboat_running{task=\"run app\"} 1",
            "lifeboat_waiting{task=\"run app\"} 0",
            "lifeboat_trouble_since_timestamp_seconds{task=\"run app\"} 1795683600",
            "lifeboat_notices_owed 4",
            "lifeboat_config_reload_success 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        // What never succeeded has no time of success: an age would hide it.
        assert!(!text.contains("lifeboat_last_success_timestamp_seconds{task=\"run new\"}"));
        assert!(text.contains(concat!(
            "lifeboat_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        )));
    }

    #[test]
    fn every_metric_of_the_alert_rules_is_exposed() {
        let rules = include_str!("../../packaging/prometheus/lifeboat.rules.yml");
        let names = |text: &str| -> BTreeSet<String> {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            words
                .filter(|w| w.starts_with("lifeboat_"))
                .map(str::to_owned)
                .collect()
        };
        let exposed = names(&exposition(&shown()));
        let named = names(rules);
        assert!(named.len() >= 9, "{named:?}");
        assert!(named.is_subset(&exposed), "{:?}", named.difference(&exposed));
        // All that tells of something has an alert; what only informs has none.
        let informs = [
            "build_info",
            "last_attempt_timestamp_seconds",
            "waiting",
            "config_reload_timestamp_seconds",
        ];
        let informs: BTreeSet<String> = informs.iter().map(|n| format!("lifeboat_{n}")).collect();
        let silent: Vec<_> = exposed
            .difference(&named)
            .filter(|n| !informs.contains(*n))
            .collect();
        assert!(silent.is_empty(), "{silent:?}");
    }
}

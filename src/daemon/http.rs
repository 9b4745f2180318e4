//! Health, readiness, metrics and the status page over HTTP.
//!
//! Health says that the loop turns and nothing else: a missed objective must never get a running backup killed. Everything
//! but health and readiness needs the token.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::page::{html, view};
use super::{Asked, Shown, connections, metrics};
use crate::clock::World;
use crate::error::{Error, Result};
use crate::jobs::Session;
use crate::secret::SecretText;
use crate::state::ledger::Ledger;
use crate::types::{Digest, SourceName};

/// The loop is woken every second; when it has not turned for so long, it hangs.
const ALIVE: Duration = Duration::from_secs(120);
/// How long open connections may hold up the end.
const END: Duration = Duration::from_secs(2);

/// Bodies are longer than this only by mistake or malice.
const BODY_MAX: usize = 4096;
/// For so long a page says that a run was asked for.
const ASKED_SHOWN: TimeDelta = TimeDelta::minutes(1);
/// Pages that are made at once.
const PAGES_AT_ONCE: usize = 4;

/// What a page may have: its own style, told by its digest, a form to where it comes from, and nothing else.
static CONTENT: LazyLock<String> = LazyLock::new(|| {
    let digest =
        base64::engine::general_purpose::STANDARD.encode(Digest::of(html::STYLE.as_bytes()).as_bytes());
    format!(
        "default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
});

/// What the handlers see.
#[derive(Clone)]
struct Seen {
    shown: Arc<Mutex<Shown>>,
    token: Option<Arc<SecretText>>,
    world: World,
    state: Arc<PathBuf>,
    ask: mpsc::Sender<Asked>,
    /// Pages that may be made at once: each reads the ledger on a connection of its own.
    pages: Arc<Semaphore>,
}

impl Seen {
    fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the button of a source's page sends along.
    fn seal(&self, source: &str) -> Option<String> {
        let token = self.token.as_ref()?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes());
        let tag = hmac::sign(&key, format!("run now: {source}").as_bytes());
        Some(crate::types::hex(tag.as_ref()))
    }
}

/// A server that goes on in the background.
pub struct Server {
    work: JoinHandle<()>,
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
    session: &Session,
    token: Option<SecretText>,
    shown: Arc<Mutex<Shown>>,
    ask: mpsc::Sender<Asked>,
) -> Result<Server> {
    let (listen, cancel) = (session.policy.http.listen, session.cancel.clone());
    let failed = |e| {
        Error::failed(format!("can not listen on {listen}"))
            .hint("Another daemon may have it: set http.listen to an address that is free.")
            .because(e)
    };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let seen = Seen {
        shown,
        token: token.map(Arc::new),
        world: session.world.clone(),
        state: Arc::new(session.policy.state_dir.clone()),
        ask,
        pages: Arc::new(Semaphore::new(PAGES_AT_ONCE)),
    };
    let router = Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_of))
        .route("/", get(front))
        .route("/sources/{name}", get(source))
        .route("/sources/{name}/run", post(run_now))
        .route("/sources/{name}/slots/{slot}", get(source_slot))
        .route("/tasks/{key}", get(task))
        .route("/tasks/{key}/slots/{slot}", get(task_slot))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(seen);
    let work = tokio::spawn(connections::serve(listener, router, cancel));
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
    let asked = shown.memory.is_none() && shown.repository.is_none();
    let known = shown.tasks.iter().all(|t| t.known);
    let code = if shown.turned.is_some() && !shown.stopping && asked && known {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, format!("{}\n", shown.sentence())).into_response()
}

/// What asks for the token: `None` when it was given, as a bearer or as the password of any user (which browsers ask for).
fn refused(seen: &Seen, headers: &HeaderMap) -> Option<Response> {
    let Some(token) = &seen.token else {
        let text = "this needs a token: set http.token in the policy\n";
        return Some((StatusCode::FORBIDDEN, text).into_response());
    };
    let given = headers.get(header::AUTHORIZATION).map(|v| v.as_bytes());
    let bearer = given.and_then(|v| v.strip_prefix(b"Bearer ")).map(<[u8]>::to_vec);
    let basic = given
        .and_then(|v| v.strip_prefix(b"Basic "))
        .and_then(|v| base64::engine::general_purpose::STANDARD.decode(v).ok())
        .and_then(|v| Some(v[v.iter().position(|b| *b == b':')? + 1..].to_vec()));
    // Compared by digest, so that the time tells nothing.
    let wanted = blake3::hash(token.expose().as_bytes());
    if bearer
        .or(basic)
        .is_some_and(|given| blake3::hash(&given) == wanted)
    {
        return None;
    }
    let ask = [(
        header::WWW_AUTHENTICATE,
        "Basic realm=\"Lifeboat: any user, the token as password\"",
    )];
    Some((StatusCode::UNAUTHORIZED, ask, "wrong or missing token\n").into_response())
}

async fn metrics_of(State(seen): State<Seen>, headers: HeaderMap) -> Response {
    if let Some(refused) = refused(&seen, &headers) {
        return refused;
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::exposition(&seen.shown())).into_response()
}

/// Makes a page from what is shown and remembered, where blocking is allowed. `None`: there is no such page.
async fn page(
    seen: Seen,
    headers: HeaderMap,
    make: impl FnOnce(&Seen, &Shown, &Ledger) -> Result<Option<String>> + Send + 'static,
) -> Response {
    if let Some(refused) = refused(&seen, &headers) {
        return refused;
    }
    let Ok(place) = seen.pages.clone().acquire_owned().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the daemon ends\n").into_response();
    };
    let work = tokio::task::spawn_blocking(move || {
        let _place = place;
        let ledger = Ledger::read_only(&seen.state)?;
        make(&seen, &seen.shown(), &ledger)
    });
    let made = work
        .await
        .unwrap_or_else(|e| Err(Error::failed("the page can not be made").because(e)));
    match made {
        Ok(Some(text)) => {
            let headers = [
                (header::CONTENT_TYPE, "text/html; charset=utf-8"),
                (header::CONTENT_SECURITY_POLICY, CONTENT.as_str()),
                (header::CACHE_CONTROL, "no-store"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::REFERRER_POLICY, "no-referrer"),
            ];
            (headers, text).into_response()
        }
        Ok(None) => (StatusCode::NOT_FOUND, "there is no such page\n").into_response(),
        Err(e) => {
            tracing::warn!(error = %e.chain(), "a status page can not be made");
            let text = "the daemon's memory can not be read just now; the log says why\n";
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn front(State(seen): State<Seen>, headers: HeaderMap) -> Response {
    page(seen, headers, |seen, shown, ledger| {
        let view = view::overview(shown, ledger, seen.world.clock.now())?;
        Ok(Some(html::overview(&view)))
    })
    .await
}

async fn source(
    State(seen): State<Seen>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    page(seen, headers, move |seen, shown, ledger| {
        let view = view::source(shown, ledger, &name, seen.world.clock.now())?;
        // The address may be kept: what it says holds for a moment.
        let asked = query
            .as_deref()
            .and_then(|query| query.strip_prefix("asked=")?.parse().ok())
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
            .is_some_and(|at| (at..at + ASKED_SHOWN).contains(&seen.world.clock.now()));
        Ok(view.map(|view| {
            let seal = seen.seal(&name).filter(|_| view.line.scheduled);
            html::source(&view, seal.as_deref(), asked)
        }))
    })
    .await
}

async fn source_slot(
    State(seen): State<Seen>,
    Path((name, slot)): Path<(String, i64)>,
    headers: HeaderMap,
) -> Response {
    let (key, base) = (format!("run {name}"), format!("/sources/{name}"));
    slot_page(seen, headers, key, base, slot).await
}

async fn task_slot(
    State(seen): State<Seen>,
    Path((key, slot)): Path<(String, i64)>,
    headers: HeaderMap,
) -> Response {
    let base = format!("/tasks/{key}");
    slot_page(seen, headers, key, base, slot).await
}

async fn slot_page(seen: Seen, headers: HeaderMap, key: String, base: String, slot: i64) -> Response {
    page(seen, headers, move |seen, shown, ledger| {
        let Some(slot) = DateTime::from_timestamp_millis(slot) else {
            return Ok(None);
        };
        let about = about(seen, shown, &key, &base);
        Ok(ledger.slot(&key, slot)?.map(|record| html::slot(&about, &record)))
    })
    .await
}

fn about<'a>(seen: &Seen, shown: &'a Shown, key: &'a str, base: &'a str) -> html::About<'a> {
    html::About {
        environment: &shown.environment,
        key,
        base,
        made: (seen.world.clock.now(), shown.zone),
    }
}

async fn task(State(seen): State<Seen>, Path(key): Path<String>, headers: HeaderMap) -> Response {
    page(seen, headers, move |seen, shown, ledger| {
        if !shown.tasks.iter().any(|t| t.key == key) {
            return Ok(None);
        }
        let base = format!("/tasks/{key}");
        let about = about(seen, shown, &key, &base);
        Ok(Some(html::task(&about, &ledger.newest_slots(&key, view::ROWS)?)))
    })
    .await
}

/// Somebody wants a run now. A browser sends the password with whatever another site makes it ask for, so the page's own
/// seal has to come along, which only who could read the page knows.
async fn run_now(
    State(seen): State<Seen>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(refused) = refused(&seen, &headers) {
        return refused;
    }
    let elsewhere = headers
        .get("sec-fetch-site")
        .is_some_and(|v| v.as_bytes() != b"same-origin" && v.as_bytes() != b"none");
    let given = url::form_urlencoded::parse(&body).find(|(key, _)| key == "seal");
    let by_bearer = headers
        .get(header::AUTHORIZATION)
        .is_some_and(|v| v.as_bytes().starts_with(b"Bearer "));
    let sealed = given.is_some_and(|(_, given)| {
        seen.seal(&name)
            .is_some_and(|seal| blake3::hash(seal.as_bytes()) == blake3::hash(given.as_bytes()))
    });
    if elsewhere || !(sealed || by_bearer) {
        return (StatusCode::FORBIDDEN, "ask from the page of the source\n").into_response();
    }
    let Ok(source) = name.parse::<SourceName>() else {
        return (StatusCode::NOT_FOUND, "there is no such source\n").into_response();
    };
    if !seen
        .shown()
        .tasks
        .iter()
        .any(|t| t.key == format!("run {source}"))
    {
        return (StatusCode::NOT_FOUND, "there is no such source on a schedule\n").into_response();
    }
    if let Some(why) = seen.shown().memory {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("nothing is begun: {why}\n"),
        )
            .into_response();
    }
    let (taken, answer) = oneshot::channel();
    let sent = seen.ask.send(Asked { source, taken }).await;
    match (sent, answer.await) {
        (Ok(()), Ok(true)) => {
            let now = seen.world.clock.now().timestamp();
            let to = [(header::LOCATION, format!("/sources/{name}?asked={now}"))];
            (StatusCode::SEE_OTHER, to, "it begins when its turn comes\n").into_response()
        }
        (Ok(()), Ok(false)) => {
            let text = "a run of it is under way or waiting already, or the daemon has only begun\n";
            (StatusCode::CONFLICT, text).into_response()
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the daemon ends\n").into_response(),
    }
}

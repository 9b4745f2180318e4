//! The status page: of the real process, and in a browser.

use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::clock::{Clock as _, SystemClock};
use lifeboat::daemon::points::ShownSource;
use lifeboat::daemon::{Asked, Shown, ShownTask, http};
use lifeboat::schedule::due::{Passed, Why};
use lifeboat::secret::SecretText;
use lifeboat::state::ledger::points::{Looked, PointRecord};
use lifeboat::state::ledger::{Ledger, Outcome};
use lifeboat::types::{RunId, SourceName};
use tokio::sync::mpsc;

use crate::harness::browser::Browser;
use crate::harness::{self, write_file};
use crate::process::{TOKEN, ask, due, site, until};
use crate::site::{Site, end};

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

fn stop(daemon: Child) {
    crate::process::signal(&daemon, rustix::process::Signal::TERM);
    let said = end(daemon);
    assert_eq!(said.code, 0, "{said}");
}

/// Waits until so many slots are done.
fn done(port: u16, count: u32) {
    let words = format!("lifeboat_runs_total{{task=\"run app\",result=\"done\"}} {count}");
    until(port, "/metrics", &words);
}

/// What stands between two texts.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let at = text.find(from).unwrap_or_else(|| panic!("no {from:?} in {text}")) + from.len();
    let rest = &text[at..];
    &rest[..rest.find(to).unwrap_or_else(|| panic!("no {to:?} in {rest}"))]
}

#[test]
fn the_page_tells_of_every_point_and_its_command_restores_it() {
    let (site, port) = site(231);
    due(&site);
    let daemon = site.start(&["daemon"]);
    let page = until(port, "/", "recoverable");
    assert!(
        page.contains("The one source is recoverable. Worst possible loss now:"),
        "{page}"
    );
    // Nothing without the token; a browser is told to ask for it.
    for path in ["/", "/sources/app", "/tasks/prune", "/sources/app/slots/0"] {
        let answer = ask(port, "GET", path, "", "").unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(
            header(&answer, "www-authenticate").unwrap().starts_with("Basic "),
            "{answer}"
        );
        assert!(!answer.contains("<html"), "{answer}");
    }
    // `anybody:open sesame`
    let answer = ask(
        port,
        "GET",
        "/",
        "Authorization: Basic YW55Ym9keTpvcGVuIHNlc2FtZQ==\r\n",
        "",
    )
    .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let policy = header(&answer, "content-security-policy").unwrap();
    assert!(
        policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    assert_eq!(header(&answer, "cache-control"), Some("no-store"));
    let source = until(port, "/sources/app", "--to TARGET");
    assert!(!page.contains("<script") && !source.contains("<script"));
    let policy = site.path("policy.toml");
    let head = format!("<code>backup restore --policy {} app --at ", policy.display());
    let command = between(&source, &head, " --to TARGET");
    let target = site.path("restored");
    let told = site.json(&[
        "restore",
        "app",
        "--at",
        command,
        "--to",
        target.to_str().unwrap(),
    ]);
    assert_eq!(told["restored_to"], command);
    let run = between(&source, "<tr id=\"", "\"");
    assert_eq!(told["run"], run);
    // The page of the slot, by its link.
    let slot = between(&source, "<a href=\"/sources/app/slots/", "\"");
    let slot = until(port, &format!("/sources/app/slots/{slot}"), "done");
    assert!(slot.contains(run), "{slot}");
    for path in [
        "/sources/other",
        "/sources/app/slots/7",
        "/sources/app/slots/99999999999999999",
        "/tasks/run%20app%00",
    ] {
        let answer = ask(port, "GET", path, TOKEN, "").unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    stop(daemon);
}

#[test]
fn a_run_is_asked_for_from_the_page_and_from_nowhere_else() {
    let (mut site, port) = site(232);
    due(&site);
    let daemon = site.start(&["daemon"]);
    let page = until(port, "/sources/app", "--to TARGET");
    let seal = between(&page, "name=\"seal\" value=\"", "\"").to_owned();
    let form = format!("seal={seal}");
    let basic = "Authorization: Basic YW55Ym9keTpvcGVuIHNlc2FtZQ==\r\n";
    let elsewhere = format!("{basic}Sec-Fetch-Site: cross-site\r\n");
    for (headers, body, status) in [
        ("", form.as_str(), 401),
        (basic, "", 403),
        (basic, "seal=00", 403),
        (elsewhere.as_str(), form.as_str(), 403),
    ] {
        let answer = ask(port, "POST", "/sources/app/run", headers, body).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{headers}{body}: {answer}"
        );
    }
    let answer = ask(port, "POST", "/sources/other/run", TOKEN, "").unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    done(port, 1);
    until(port, "/metrics", "lifeboat_running{task=\"run app\"} 0");
    site.change();
    let answer = ask(port, "POST", "/sources/app/run", basic, &form).unwrap();
    assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
    let to = header(&answer, "location").unwrap().to_owned();
    assert!(to.starts_with("/sources/app?asked=17"), "{to}");
    let said = |path: &str| {
        let page = ask(port, "GET", path, TOKEN, "").unwrap();
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        page.contains("A run was asked for")
    };
    assert!(said(&to));
    // An address that somebody kept.
    assert!(!said("/sources/app?asked=1764000000") && !said("/sources/app?asked") && !said("/sources/app"));
    done(port, 2);
    // For programs the token is enough.
    until(port, "/metrics", "lifeboat_running{task=\"run app\"} 0");
    let answer = ask(port, "POST", "/sources/app/run", TOKEN, "").unwrap();
    assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
    done(port, 3);
    until(port, "/metrics", "lifeboat_recovery_points{source=\"app\"} 3");
    stop(daemon);
    site.verifies("runs that were asked for");
    assert_eq!(site.points().len(), 3, "each has a slot of its own");
}

#[test]
fn a_failure_is_told_with_its_cause_and_without_a_secret() {
    let (site, port) = site(233);
    due(&site);
    // What only somebody can mend is not tried again.
    std::fs::rename(site.path("repository"), site.path("away")).unwrap();
    let daemon = site.start(&["daemon"]);
    let page = until(
        port,
        "/",
        "1 of 1 source needs attention: app, its slots have failed for",
    );
    assert!(page.contains("class=\"bad\""), "{page}");
    assert!(page.contains("not known yet"), "{page}");
    let source = until(port, "/sources/app", "✕ failed");
    let slot = between(&source, "<a href=\"/sources/app/slots/", "\"").to_owned();
    let told = until(port, &format!("/sources/app/slots/{slot}"), "failed");
    assert!(told.contains("no such directory"), "{told}");
    for text in [&page, &source, &told] {
        assert!(!text.contains("sesame"), "{text}");
    }
    stop(daemon);
}

fn run(n: u64) -> RunId {
    RunId::new(ulid::Ulid::from_parts(1_790_000_000_000 + n, u128::from(n)))
}

/// A month of three sources: one that is well, one that fails, one with a gap and damage; and a name that is hostile.
fn month(state: &std::path::Path, now: DateTime<Utc>) -> Shown {
    let (mut ledger, _) = Ledger::open(state).unwrap();
    let hours = |n: i64| now - TimeDelta::hours(n);
    let mut shown = Shown {
        environment: "production <b>".to_owned(),
        policy: "/etc/lifeboat/policy.toml".to_owned(),
        zone: "Europe/Berlin".parse().unwrap(),
        owed: 2,
        turned: Some(Duration::from_secs(1)),
        ..Shown::default()
    };
    for (name, kind, every, rpo) in [
        ("orders", "postgres-logical", 24, 26),
        ("app", "pocketbase", 2, 4),
        ("media", "pocketbase", 6, 8),
    ] {
        let source: SourceName = name.parse().unwrap();
        let key = format!("run {name}");
        let mut new = Vec::new();
        let mut all = std::collections::BTreeMap::new();
        for n in (1..30 * 24 / every).rev() {
            let slot = hours(n * every);
            let number = u64::try_from(n).unwrap() + every as u64 * 10_000;
            let missed = name == "media" && (20..34).contains(&n);
            let failed = name == "orders" && n < 3;
            if missed {
                let span = Passed {
                    first: slot,
                    last: slot,
                    count: 1,
                    more: false,
                    why: Why::TooOld,
                };
                ledger.settle(&key, slot, &[span], None, slot).unwrap();
                continue;
            }
            let late = TimeDelta::minutes(if name == "media" && n % 29 == 0 { 40 } else { 0 });
            ledger.settle(&key, slot, &[], Some(slot), slot + late).unwrap();
            let (outcome, point, error) = if failed {
                let cause = "pg_dump: error: connection to server at <script>alert(1)</script> failed";
                (Outcome::Failed, None, Some(cause))
            } else {
                (Outcome::Done, Some(run(number)), None)
            };
            let ended = slot + late + TimeDelta::seconds(90 + n);
            ledger.end(&key, slot, outcome, point, error, ended).unwrap();
            if let Some(run) = point {
                let damaged = name == "media" && n == 9;
                let tombstoned = (name == "app" && n > 100 && n % 7 != 0).then(|| hours(5));
                all.insert(run, (tombstoned, damaged));
                new.push(PointRecord {
                    run,
                    at: slot + TimeDelta::nanoseconds(123_456_789),
                    finished: ended,
                    content: 900_000_000 - u64::try_from(n).unwrap() * 1_000_000,
                    stored: 4_000_000,
                    writer: "me".into(),
                    partial: false,
                    tombstoned,
                    damaged,
                });
            }
        }
        ledger
            .looked(
                &source,
                &Looked {
                    place: "here".into(),
                    new,
                    all: Some(all),
                },
                now,
            )
            .unwrap();
        shown.sources.push(ShownSource {
            points: ledger.points_summary(&source, "here", "me", now).unwrap(),
            name: source,
            kind,
            objective: Some(Duration::from_secs(rpo * 3600)),
            proof: lifeboat::daemon::proofs::ShownProof::default(),
            looking: false,
        });
        shown.tasks.push(ShownTask {
            next: Some(now + TimeDelta::minutes(41)),
            running: (name == "app").then(|| hours(0)),
            waiting: None,
            failed: None,
            known: true,
            rpo: None,
            totals: ledger.totals(&key).unwrap(),
            trouble: (name == "orders").then(|| hours(48)),
            key,
        });
    }
    for n in 1..30 {
        let slot = hours(n * 24);
        ledger.settle("prune", slot, &[], Some(slot), slot).unwrap();
        ledger
            .end("prune", slot, Outcome::Done, None, None, slot)
            .unwrap();
    }
    shown.tasks.push(ShownTask {
        key: "prune".into(),
        next: Some(now + TimeDelta::hours(4)),
        running: None,
        waiting: None,
        failed: None,
        known: true,
        rpo: None,
        totals: ledger.totals("prune").unwrap(),
        trouble: None,
    });
    shown
}

/// Serves a month, and gives its address and what is asked of it.
async fn served(site: &Site) -> (http::Server, mpsc::Receiver<Asked>, String) {
    let session = crate::world::session(site, Arc::new(SystemClock));
    let shown = month(&session.policy.state_dir, SystemClock.now());
    let (ask, asked) = mpsc::channel(1);
    let token = Some(SecretText::new("open sesame".to_owned()));
    let server = http::serve(&session, token, Arc::new(Mutex::new(shown)), ask)
        .await
        .unwrap();
    let base = format!("http://any:open%20sesame@{}", server.address);
    (server, asked, base)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_read_in_a_browser_on_a_phone_and_in_the_dark() {
    let mut site = Site::new(234);
    let policy = std::fs::read_to_string(site.path("policy.toml")).unwrap();
    write_file(
        site.dir.path(),
        "policy.toml",
        policy + "\n[http]\nlisten = \"127.0.0.1:0\"\n",
    );
    site.environment.clear();
    let (_server, mut asked, base) = served(&site).await;
    let clicked = tokio::spawn(async move {
        let asked = asked.recv().await.unwrap();
        asked.taken.send(true).unwrap();
        asked.source
    });
    let shots = harness::project().join("target/tmp/page");
    std::fs::create_dir_all(&shots).unwrap();
    tokio::task::spawn_blocking(move || {
        let browser = Browser::start();
        for (name, width, dark) in [
            ("wide", 1200, false),
            ("dark", 1200, true),
            ("phone", 390, false),
            ("phone-dark", 390, true),
        ] {
            browser.look(width, dark);
            for (page, path) in [
                ("front", "/"),
                ("orders", "/sources/orders"),
                ("media", "/sources/media"),
            ] {
                browser.open(&format!("{base}{path}"));
                let overflow = browser
                    .ask("document.documentElement.scrollWidth - document.documentElement.clientWidth");
                assert_eq!(overflow, 0, "{page} on {name} is wider than its window");
                std::fs::write(shots.join(format!("{page}-{name}.png")), browser.screenshot()).unwrap();
                let back = browser.ask("getComputedStyle(document.body).backgroundColor");
                assert_eq!(back == "rgb(13, 17, 23)", dark, "{name}: {back}");
                readable(&browser, &format!("{page} on {name}"));
            }
        }
        front(&browser, &base);
        of_source(&browser, &base);
    })
    .await
    .unwrap();
    let source = tokio::time::timeout(Duration::from_secs(30), clicked)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(source.as_str(), "media");
}

/// Every text stands out from what is behind it (WCAG 2.2, 1.4.3: 4.5 to 1), and every picture says in words what it shows.
fn readable(browser: &Browser, page: &str) {
    let worst = browser.ask(
        "(() => {
            const parts = c => c.match(/[\\d.]+/g).map(Number);
            const lum = c => { const [r, g, b] = parts(c).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
                const p = parts(c); if (p.length < 4 || p[3] > 0) return c; } return 'rgb(255, 255, 255)'; };
            let worst = [99, ''];
            for (const e of document.querySelectorAll('body *')) {
                if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
                const [a, b] = [lum(getComputedStyle(e).color), lum(back(e))].sort((x, y) => y - x);
                const ratio = (a + 0.05) / (b + 0.05);
                if (ratio < worst[0]) worst = [ratio, e.textContent.slice(0, 40)];
            }
            return worst;
        })()",
    );
    assert!(worst[0].as_f64().unwrap() >= 4.5, "{page}: {worst}");
    let mute = browser.ask("[...document.querySelectorAll('svg')].filter(s => !s.ariaLabel && s.getAttribute('aria-hidden') !== 'true').length");
    assert_eq!(mute, 0, "{page}");
}

fn front(browser: &Browser, base: &str) {
    browser.look(1200, false);
    browser.open(base);
    let title = browser.ask("document.querySelector('h1').textContent");
    let title = title.as_str().unwrap();
    assert!(
        title.starts_with("2 of 3 sources need attention: orders, its newest recovery point is 3 d old"),
        "{title}"
    );
    assert!(
        title.contains("Worst possible loss now: 3 d (orders)."),
        "{title}"
    );
    let rows = browser.ask(
        "[...document.querySelectorAll('table')[0].querySelectorAll('tbody th a')].map(a => a.textContent)",
    );
    assert_eq!(rows, serde_json::json!(["orders", "media", "app"]), "worst first");
    let strip = browser.ask(
        "[...document.querySelectorAll('tbody')[0].querySelectorAll('svg.strip')].map(s => s.ariaLabel)",
    );
    assert!(
        strip[0].as_str().unwrap().ends_with("0 missed, 2 failed"),
        "{strip}"
    );
    assert!(!strip[1].as_str().unwrap().contains(" 0 missed"), "{strip}");
    assert!(
        strip[2].as_str().unwrap().contains("0 late, 0 missed, 0 failed"),
        "{strip}"
    );
    // What came from outside is text.
    assert_eq!(browser.ask("document.querySelectorAll('script').length"), 0);
    let text = browser.ask("document.body.textContent");
    assert!(
        text.as_str().unwrap().contains("<script>alert(1)</script>")
            && text.as_str().unwrap().contains("production <b>")
    );
    assert!(
        text.as_str().unwrap().contains("2 notices were not taken"),
        "{text}"
    );
    browser.click("tbody th a");
    assert!(
        browser
            .ask("location.pathname")
            .as_str()
            .unwrap()
            .starts_with("/sources/orders")
    );
}

fn of_source(browser: &Browser, base: &str) {
    browser.open(&format!("{base}/sources/media"));
    let label = browser.ask("document.querySelector('svg.timeline').ariaLabel");
    assert!(
        label.as_str().unwrap().contains("2 gaps longer")
            || label.as_str().unwrap().contains("2 gaps longer"),
        "{label}"
    );
    assert!(
        browser
            .ask("document.querySelectorAll('svg.timeline .gap').length")
            .as_i64()
            .unwrap()
            >= 1
    );
    assert_eq!(
        browser.ask("document.querySelectorAll('svg.timeline .damaged').length"),
        1
    );
    // A mark leads to the line of its point.
    let href = browser.ask("[...document.querySelectorAll('svg.timeline a')].pop().getAttribute('href')");
    let row = format!(
        "document.getElementById('{}').querySelector('code').textContent",
        &href.as_str().unwrap()[1..]
    );
    let command = browser.ask(&row);
    let command = command.as_str().unwrap();
    assert!(
        command.starts_with("backup restore --policy /etc/lifeboat/policy.toml media --at 20")
            && command.contains(".")
            && command.ends_with("Z --to TARGET"),
        "{command}"
    );
    let taller = browser.ask("document.querySelector('svg.timeline').getBoundingClientRect().height");
    assert!(taller.as_f64().unwrap() > 40.0, "{taller}");
    browser.click("form button");
    // The answer comes when it comes.
    let there = harness::poll(std::time::Duration::from_secs(30), || {
        let at = browser.ask("location.pathname + location.search");
        at.as_str()?.starts_with("/sources/media?asked=").then_some(())
    });
    assert!(there.is_some(), "{}", browser.ask("location.href"));
}

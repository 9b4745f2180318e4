//! How notices and pings come to their places: in order, past those that hang, and tried before they are needed.

use std::net::TcpListener;
use std::sync::atomic::Ordering;

use chrono::TimeDelta;
use serde_json::Value;

use crate::harness::write_file;
use crate::notices::{Place, all_told, hours, secret, tell};
use crate::world::Port;

/// Somebody who listens, and never says a word.
fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_outside_hears_every_slot_begin_and_end() {
    let mut port = Port::new(224, "0 * * * *", "");
    let (ping, push) = (Place::new(), Place::new());
    let keys = [
        format!(
            "ping = {}",
            secret(&port, "ping", &format!("{}/beat", ping.address))
        ),
        format!(
            "push = {}",
            secret(
                &port,
                "push",
                &format!("{}/push/x?status=up&msg=OK", push.address)
            )
        ),
        "on = []".to_owned(),
    ];
    tell(&port, &keys.join("\n"));
    port.start();
    port.rest().await;
    let (here, away) = (port.site.path("repository"), port.site.path("away"));
    let heard = |place: &Place| -> Vec<(String, String)> {
        let taken = place.taken();
        let split = |path: &String| {
            path.split_once('?')
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .unwrap()
        };
        taken.iter().map(|(path, _, _)| split(path)).collect()
    };
    port.advance(TimeDelta::hours(1)).await;
    port.until(all_told).await;
    let beats = heard(&ping);
    // A beginning that ended before it was told of may go unsaid; the end is always said, under the same id.
    let (end, begun) = beats.split_last().unwrap();
    assert_eq!(end.0, "/beat");
    assert!(
        begun.iter().all(|b| b.0 == "/beat/start" && b.1 == end.1),
        "{beats:?}"
    );
    assert!(end.1.starts_with("rid="));
    assert_eq!(
        heard(&push),
        [("/push/x".to_owned(), "status=up&msg=run+app+is+done".to_owned())]
    );
    std::fs::rename(&here, &away).unwrap();
    for _ in 0..2 {
        port.advance(TimeDelta::hours(1)).await;
    }
    port.until(all_told).await;
    assert_eq!(heard(&ping).last().unwrap().0, "/beat/fail");
    assert!(
        heard(&push)
            .last()
            .unwrap()
            .1
            .starts_with("status=down&msg=run+app+failed")
    );
    std::fs::rename(&away, &here).unwrap();
    // Nobody listens for a while: what happened is told then, in its order.
    push.status.store(500, Ordering::SeqCst);
    let before = heard(&push).len();
    for _ in 0..3 {
        port.advance(TimeDelta::hours(1)).await;
    }
    push.status.store(200, Ordering::SeqCst);
    for _ in 0..3 {
        port.advance(TimeDelta::minutes(20)).await;
    }
    port.until(all_told).await;
    let told: Vec<_> = heard(&push)[before..].iter().map(|t| t.1.clone()).collect();
    assert!(
        told.len() >= 3 && told.iter().all(|t| t.starts_with("status=up")),
        "{told:?}"
    );
    assert_eq!(heard(&ping).last().unwrap().0, "/beat");
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_hangs_holds_up_no_other() {
    let mut port = Port::new(227, "0 * * * *", "");
    let ((_a, web), (_b, mail)) = (silent(), silent());
    let place = Place::new();
    let hanging = format!(
        "webhook = {}\nemail = \"ops@example.net\"\nsmtp = {}\nslack = {}",
        secret(&port, "web", &format!("http://127.0.0.1:{web}/")),
        secret(&port, "mail", &format!("smtp://127.0.0.1:{mail}")),
        secret(&port, "slack", &place.address),
    );
    tell(&port, &hanging);
    port.start();
    port.rest().await;
    hours(&mut port, 1).await;
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    hours(&mut port, 1).await;
    // The third place hears of it while the others are waited for, and slots go on.
    port.until(|shown| shown.owed == 2).await;
    assert_eq!(place.taken().len(), 1);
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    hours(&mut port, 2).await;
    assert_eq!(port.slots().len(), 3);
    // Both are given up for now, and are owed yet; the daemon ends at once.
    port.stop().await;
    assert!(port.ledger().owed_count().unwrap() >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_notice_is_sent_by_check_and_what_does_not_come_through_is_told() {
    let port = Port::new(228, "0 * * * *", "");
    let (place, deaf) = (Place::new(), Place::new());
    deaf.status.store(404, Ordering::SeqCst);
    let keys = format!(
        "webhook = {}\nslack = {}\nping = {}",
        secret(&port, "webhook", &format!("{}/hook", place.address)),
        secret(&port, "slack", &format!("{}/open-sesame", deaf.address)),
        secret(&port, "ping", &format!("{}/beat", place.address)),
    );
    tell(&port, &keys);
    let check = |site: &crate::site::Site, args: &[&str]| crate::harness::run(&mut site.backup(args));
    let said = check(&port.site, &["check"]);
    assert_eq!(said.code, 0, "{said}");
    assert!(place.taken().is_empty(), "only when it is asked for");
    let said = check(&port.site, &["check", "--notify"]);
    assert_eq!(said.code, 1, "{said}");
    for word in [
        "notify.ops.webhook",
        "took a test",
        "notify.ops.slack",
        "slack answered 404",
    ] {
        assert!(said.stdout.contains(word), "{word}: {said}");
    }
    assert!(
        !said.stdout.contains("sesame") && !said.stderr.contains("sesame"),
        "{said}"
    );
    let taken = place.taken();
    let hook = taken.iter().find(|t| t.0 == "/hook").unwrap();
    assert_eq!(serde_json::from_str::<Value>(&hook.2).unwrap()["test"], true);
    // To the log of the switch: a test is no beat.
    assert!(
        taken.iter().any(|t| t.0.starts_with("/beat/log?rid=")),
        "{taken:?}"
    );
    deaf.status.store(200, Ordering::SeqCst);
    assert_eq!(check(&port.site, &["check", "--notify"]).code, 0);
    assert!(deaf.taken()[0].2.contains("a test, nothing has happened"));
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_arrive_in_the_order_of_what_happened_and_none_starves_another() {
    let mut port = Port::new(229, "0 * * * *", "");
    let (place, good) = (Place::new(), Place::new());
    let dead: Vec<_> = (0..5).map(|_| silent()).collect();
    let mut text = String::new();
    for (n, (_, to)) in dead.iter().enumerate() {
        let url = secret(&port, &format!("dead{n}"), &format!("http://127.0.0.1:{to}/"));
        text += &format!("\n[notify.a{n}]\nwebhook = {url}\n");
    }
    let keys = format!("webhook = {}{text}", secret(&port, "webhook", &place.address));
    tell(&port, &keys);
    let last = secret(&port, "good", &good.address);
    let policy = std::fs::read_to_string(port.site.path("policy.toml")).unwrap();
    write_file(
        port.site.dir.path(),
        "policy.toml",
        format!("{policy}\n[notify.z]\nwebhook = {last}\n"),
    );
    port.start();
    port.rest().await;
    hours(&mut port, 1).await;
    place.status.store(503, Ordering::SeqCst);
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    hours(&mut port, 1).await;
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    hours(&mut port, 1).await;
    port.until(|_| good.taken().len() == 2).await;
    assert_eq!(good.events(), ["failure", "recovery"], "the dead hold up nobody");
    place.status.store(200, Ordering::SeqCst);
    for _ in 0..4 {
        port.advance(TimeDelta::minutes(10)).await;
    }
    port.until(|_| place.taken().len() == 2).await;
    assert_eq!(place.events(), ["failure", "recovery"], "the older one first");
    let recovery: Value = serde_json::from_str(&place.taken()[1].2).unwrap();
    assert_eq!(recovery["recovered"], "failure");
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_a_missed_objective_is_a_success() {
    // A point an hour, and an objective of half one: missed before each, and met by each.
    let mut port = Port::new(251, "0 * * * *", "objective = { rpo = \"30m\" }");
    let (ping, place) = (Place::new(), Place::new());
    let keys = format!(
        "ping = {}\nwebhook = {}",
        secret(&port, "ping", &format!("{}/beat", ping.address)),
        secret(&port, "webhook", &place.address)
    );
    tell(&port, &keys);
    port.start();
    port.rest().await;
    hours(&mut port, 1).await;
    port.advance(TimeDelta::minutes(45)).await;
    port.until(all_told).await;
    assert_eq!(place.events().last().map(String::as_str), Some("objective"));
    port.advance(TimeDelta::minutes(15)).await;
    port.until(all_told).await;
    let last = ping.taken().pop().unwrap().0;
    assert!(last.starts_with("/beat?rid="), "{last}");
    assert_eq!(place.events().last().map(String::as_str), Some("recovery"));
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_first_is_delivered_first_though_it_has_to_wait() {
    let mut port = Port::new(254, "* * * * *", "");
    let place = Place::new();
    tell(
        &port,
        &format!("webhook = {}", secret(&port, "webhook", &place.address)),
    );
    port.start();
    port.rest().await;
    port.advance(TimeDelta::minutes(1)).await;
    place.status.store(503, Ordering::SeqCst);
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    for _ in 0..6 {
        port.advance(TimeDelta::minutes(1)).await;
        port.until(|shown| shown.owed == 1).await;
    }
    // By now the failure is tried every few minutes only; the recovery comes in between.
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    place.status.store(200, Ordering::SeqCst);
    for _ in 0..9 {
        port.advance(TimeDelta::minutes(1)).await;
    }
    port.until(all_told).await;
    assert_eq!(place.events(), ["failure", "recovery"]);
    port.stop().await;
}

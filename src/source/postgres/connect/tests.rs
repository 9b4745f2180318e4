//! Tests of connection URLs and modes.

use super::*;

fn parse(url: &str) -> Result<Address> {
    Address::parse(&SecretText::new(url.into()))
}

#[test]
fn reads_urls_as_libpq_does() {
    let a = parse("postgres://me:p%40ss%2F@db.example:6543/sh%C3%B6p?sslmode=require").unwrap();
    assert_eq!(
        (a.host.as_str(), a.port, a.user.as_str()),
        ("db.example", 6543, "me")
    );
    assert_eq!(a.password.as_ref().unwrap().expose(), "p@ss/");
    assert_eq!(a.database.as_deref(), Some("shöp"));
    assert_eq!(a.ssl_mode, SslMode::Require);
    let a = parse("postgresql://me@/db?host=/run/pg&port=5433").unwrap();
    assert_eq!((a.host.as_str(), a.port), ("/run/pg", 5433));
    let a = parse("postgres://me:a@b@%2Fvar%2Frun").unwrap();
    assert_eq!((a.host.as_str(), a.database), ("/var/run", None));
    assert_eq!(a.password.unwrap().expose(), "a@b");
    let a = parse("postgres://me@[::1]:5/x").unwrap();
    assert_eq!((a.host.as_str(), a.port), ("::1", 5));
}

#[test]
fn refusals_and_debug_never_show_the_password() {
    for url in [
        "postgres://me:sentinel@h:port/x",
        "postgres://me:sentinel@h/x?nonsense=1",
        "postgres://me:sentinel%@h",
        "mysql://me:sentinel@h",
        "postgres://me:sentinel@a,b/x",
        "postgres://me:sentinel@h/x?sslmode=maybe",
        "postgres://me:sentinel@h/x?sslcert=/a",
        "postgres://me:pw-a@sentinel/ret@127.0.0.1:55801/shop",
        "postgres://me:12/sentinel@h/shop",
        "postgres://me:a?sentinel=1@h/shop",
        "postgres://me:a@sentinel?x=1@h/shop",
    ] {
        let error = parse(url).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(!format!("{error:?}").contains("sentinel"), "{error:?}");
    }
    let a = parse("postgres://me:sentinel@h/x").unwrap();
    assert!(!format!("{a:?} {}", a.shown()).contains("sentinel"));
}

//! The contract of [`super`] as a test that every store has to pass: one function for each rule. Tests run it
//! against every store, and whoever writes another store runs it too.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{Abilities, Fault, Page, PutOptions, SharedStore, StoreError, View};
use crate::types::{Digest, Key};

/// What a rule found: nothing, or what was wrong.
type Found = Result<(), String>;

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule.
    pub rule: &'static str,
    /// What was seen.
    pub told: String,
}

/// Objects in the long list: more than a page of any store.
const MANY: usize = 1_030;

/// Holds a store to every rule of the contract, with objects under `conformance/`, of which some stay behind. The
/// store has to be empty there. What [`super::Store::probe`] found decides where the contract leaves a choice.
///
/// # Errors
/// The rules that do not hold.
pub async fn run(store: SharedStore, abilities: &Abilities) -> Result<(), Vec<Broken>> {
    let s = &store;
    let results = [
        ("an object is whole", whole(s).await),
        ("absence is proven", absence(s).await),
        ("what is above a key is no key", above(s).await),
        ("a head tells size and time", head(s).await),
        ("a range is exact", ranges(s).await),
        ("a put never replaces", second_put(s, abilities).await),
        ("of parallel puts one wins", parallel_puts(s, abilities).await),
        ("a wrong digest stores nothing", digests(s, abilities).await),
        (
            "a list is in byte order of the key",
            list_order(s, View::Current).await,
        ),
        ("a list begins after any text", list_after(s, View::Current).await),
        (
            "a prefix need not end at a slash",
            list_prefix(s, View::Current).await,
        ),
        ("a list comes in pages", list_pages(s, View::Current).await),
        ("odd keys are keys", odd_keys(s).await),
        ("long keys are keys", long_keys(s).await),
        ("a delete succeeds, twice too", delete(s).await),
        ("store time goes on", now(s).await),
        ("what is written once is its first version", first(s).await),
        ("a probe can be made twice", probe(s, abilities).await),
    ];
    let broken: Vec<Broken> = results
        .into_iter()
        .filter_map(|(rule, result)| result.err().map(|told| Broken { rule, told }))
        .collect();
    if broken.is_empty() { Ok(()) } else { Err(broken) }
}

fn key(text: &str) -> Key {
    Key::from_text(format!("conformance/{text}"))
}

fn failed(e: StoreError) -> String {
    format!("{e} ({:?})", e.fault)
}

fn ensure(holds: bool, told: impl FnOnce() -> String) -> Found {
    if holds { Ok(()) } else { Err(told()) }
}

/// Bytes that differ everywhere, so that a shift is told.
fn pattern(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    let bytes = (0..length).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    bytes.collect()
}

async fn put(s: &SharedStore, key: &Key, body: Bytes) -> Found {
    s.put(key, body, PutOptions::default()).await.map_err(failed)
}

async fn expect_fault<T>(
    fault: Fault,
    what: &str,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Found {
    match call.await {
        Err(e) if e.fault == fault => Ok(()),
        Err(e) => Err(format!("{what}: {} instead of {fault:?}", failed(e))),
        Ok(_) => Err(format!("{what} succeeded")),
    }
}

async fn whole(s: &SharedStore) -> Found {
    for size in [0usize, 1, 4095, 1 << 20, (5 << 20) + 17] {
        let key = key(&format!("whole/{size}"));
        let body = pattern(size);
        let options = PutOptions {
            digest: Some(Digest::of(&body)),
            lock: None,
            ..PutOptions::default()
        };
        s.put(&key, body.clone(), options).await.map_err(failed)?;
        let got = s.get(&key, None, View::Current).await.map_err(failed)?;
        ensure(got == body, || {
            format!("{size} bytes came back as {} others", got.len())
        })?;
    }
    Ok(())
}

async fn absence(s: &SharedStore) -> Found {
    put(s, &key("absence/there/object"), pattern(3)).await?;
    for absent in ["absence/no", "absence/there/obj", "absence/no/such/place"] {
        absent_key(s, absent).await?;
    }
    Ok(())
}

async fn above(s: &SharedStore) -> Found {
    let object = key("above/there/object");
    put(s, &object, pattern(3)).await?;
    absent_key(s, "above/there").await?;
    s.delete(&key("above/there")).await.map_err(failed)?;
    let got = s.get(&object, None, View::Current).await.map_err(failed)?;
    ensure(got == pattern(3), || "the object below is another".to_owned())
}

async fn absent_key(s: &SharedStore, absent: &str) -> Found {
    let key = key(absent);
    expect_fault(Fault::NotFound, absent, s.get(&key, None, View::Current)).await?;
    expect_fault(Fault::NotFound, absent, s.get(&key, Some(0..1), View::Current)).await?;
    expect_fault(Fault::NotFound, absent, s.get(&key, Some(0..0), View::Current)).await?;
    let head = s.head(&key, View::Current).await.map_err(failed)?;
    ensure(head.is_none(), || format!("{absent} has a head"))
}

async fn head(s: &SharedStore) -> Found {
    let before = s.now().await.map_err(failed)?;
    for size in [0usize, 1234] {
        let key = key(&format!("head/{size}"));
        put(s, &key, pattern(size)).await?;
        let head = s.head(&key, View::Current).await.map_err(failed)?;
        let head = head.ok_or("no head")?;
        ensure(head.key == key, || format!("the head is of {}", head.key))?;
        ensure(head.size == size as u64, || {
            format!("{size} bytes are told as {}", head.size)
        })?;
        let age = head.modified - before;
        ensure(age.num_seconds().abs() < 60, || {
            format!("written {age} after the store's time just before")
        })?;
    }
    Ok(())
}

async fn ranges(s: &SharedStore) -> Found {
    let key_of = key("ranges/object");
    let body = pattern(1000);
    put(s, &key_of, body.clone()).await?;
    for range in [0..1, 0..1000, 999..1000, 17..801, 0..0, 500..500, 1000..1000] {
        let got = s.get(&key_of, Some(range.clone()), View::Current).await;
        let got = got.map_err(|e| format!("{range:?}: {}", failed(e)))?;
        let due = body.slice(range.start as usize..range.end as usize);
        ensure(got == due, || {
            format!("{range:?} came as {} other bytes", got.len())
        })?;
    }
    for range in [0..1001, 999..1001, 1000..1001, 5000..5001, 1001..1001] {
        let what = format!("the range {range:?} of 1000 bytes");
        expect_fault(Fault::Damaged, &what, s.get(&key_of, Some(range), View::Current)).await?;
    }
    let empty = key("ranges/empty");
    put(s, &empty, Bytes::new()).await?;
    let got = s.get(&empty, Some(0..0), View::Current).await.map_err(failed)?;
    ensure(got.is_empty(), || "an empty object has bytes".to_owned())?;
    let what = "a range of an empty object";
    expect_fault(Fault::Damaged, what, s.get(&empty, Some(0..1), View::Current)).await
}

async fn second_put(s: &SharedStore, abilities: &Abilities) -> Found {
    let key = key("second/object");
    let (body, other) = (pattern(100), pattern(99));
    put(s, &key, body.clone()).await?;
    let second = s.put(&key, other, PutOptions::default());
    if !abilities.refuses_overwrite {
        return second.await.map_err(failed);
    }
    expect_fault(Fault::Exists, "a second put", second).await?;
    let got = s.get(&key, None, View::Current).await.map_err(failed)?;
    ensure(got == body, || "a refused put has replaced the bytes".to_owned())
}

async fn parallel_puts(s: &SharedStore, abilities: &Abilities) -> Found {
    for round in 0..4 {
        let key = key(&format!("parallel/{round}/object"));
        let puts = (1..=8usize).map(|n| {
            let key = &key;
            async move {
                let result = s.put(key, pattern(n * 1000), PutOptions::default()).await;
                (n, result)
            }
        });
        let mut winners = Vec::new();
        for (n, result) in futures::future::join_all(puts).await {
            match result {
                Ok(()) => winners.push(n),
                Err(e) if e.fault == Fault::Exists => {}
                // A race that the store gives up; what counts is what is stored.
                Err(e) if e.fault.is_transient() => {}
                Err(e) => return Err(failed(e)),
            }
        }
        let got = s.get(&key, None, View::Current).await.map_err(failed)?;
        let n = got.len() / 1000;
        ensure(got == pattern(n * 1000) && winners.contains(&n), || {
            format!(
                "{} bytes are stored, which no winner wrote ({winners:?})",
                got.len()
            )
        })?;
        ensure(!abilities.refuses_overwrite || winners.len() == 1, || {
            format!("{} puts of one key have won", winners.len())
        })?;
    }
    Ok(())
}

async fn digests(s: &SharedStore, abilities: &Abilities) -> Found {
    let key = key("digest/wrong");
    let options = PutOptions {
        digest: Some(Digest::of(b"something else")),
        lock: None,
        ..PutOptions::default()
    };
    match s.put(&key, pattern(64), options).await {
        Ok(()) => ensure(!abilities.checks_digest, || "a wrong digest is taken".to_owned()),
        // A put that fails may have stored the object; such a store can not tell.
        Err(_) if !abilities.checks_digest => Ok(()),
        Err(e) if e.fault == Fault::Damaged => {
            let head = s.head(&key, View::Current).await.map_err(failed)?;
            ensure(head.is_none(), || "the refused object is there".to_owned())
        }
        Err(e) => Err(failed(e)),
    }
}

/// All keys of a list, page by page, checked on the way.
async fn collect(
    s: &SharedStore,
    prefix: &str,
    after: Option<&str>,
    view: View,
) -> Result<Vec<String>, String> {
    let mut keys: Vec<String> = Vec::new();
    let mut after = after.map(ToOwned::to_owned);
    for _ in 0..1000 {
        let Page { objects, next } = s.list(prefix, after.as_deref(), view).await.map_err(failed)?;
        for object in objects {
            let text = object.key.as_str();
            ensure(text.starts_with(prefix), || {
                format!("{text} is not under {prefix}")
            })?;
            ensure(after.as_deref().is_none_or(|after| text > after), || {
                format!("{text} is not after {after:?}")
            })?;
            ensure(keys.last().is_none_or(|last| last.as_str() < text), || {
                format!("{text} comes after {:?}", keys.last())
            })?;
            keys.push(text.to_owned());
        }
        match next {
            None => return Ok(keys),
            Some(next) => {
                ensure(keys.last() == Some(&next), || {
                    format!("the next page is after {next}, not after the last key")
                })?;
                after = Some(next);
            }
        }
    }
    Err("the list does not end".to_owned())
}

/// Keys whose order is not that of a directory tree: `-` and `.` sort before `/`, and `0` after it.
const ORDER: [&str; 16] = [
    "!first/x",
    "app!q/r",
    "app-/x/y",
    "app-2/a",
    "app-2/b",
    "app-20",
    "app.x",
    "app/1",
    "app/10",
    "app/2/deep/er",
    "app/d-1",
    "app/d.e",
    "app/d/3",
    "app0",
    "b",
    "zz/z",
];

async fn put_all(s: &SharedStore, under: &str, names: &[String]) -> Found {
    let puts = names.iter().map(|name| async move {
        let key = key(&format!("{under}{name}"));
        let result = s.put(&key, Bytes::from(name.clone()), PutOptions::default());
        match result.await {
            // An earlier rule has put them.
            Err(e) if e.fault == Fault::Exists => Ok(()),
            other => other,
        }
    });
    stream::iter(puts)
        .buffer_unordered(16)
        .try_collect::<()>()
        .await
        .map_err(failed)
}

async fn put_order(s: &SharedStore) -> Result<Vec<String>, String> {
    let names: Vec<String> = ORDER.iter().map(|n| (*n).to_owned()).collect();
    put_all(s, "order/", &names).await?;
    Ok(ORDER.iter().map(|n| format!("conformance/order/{n}")).collect())
}

fn compare(what: &str, got: &[String], due: &[String]) -> Found {
    if got == due {
        return Ok(());
    }
    let (seen, wanted): (BTreeSet<_>, BTreeSet<_>) = (got.iter().collect(), due.iter().collect());
    let missing: Vec<_> = wanted.difference(&seen).take(5).collect();
    let extra: Vec<_> = seen.difference(&wanted).take(5).collect();
    Err(format!(
        "{what}: {} keys instead of {}, missing {missing:?}, too many {extra:?}",
        got.len(),
        due.len()
    ))
}

async fn list_order(s: &SharedStore, view: View) -> Found {
    let due = put_order(s).await?;
    compare("all", &collect(s, "conformance/order/", None, view).await?, &due)?;
    let none = collect(s, "conformance/nothing-here/", None, view).await?;
    compare("an absent prefix", &none, &[])
}

async fn list_after(s: &SharedStore, view: View) -> Found {
    let all = put_order(s).await?;
    let texts = [
        "",
        "app",
        "app-",
        "app-2",
        "app-2/",
        "app-2/a",
        "app-20",
        "app.",
        "app/",
        "app/1",
        "app/2",
        "app/2/deep",
        "app/d",
        "app/d-",
        "app/d/3",
        "app/d0",
        "app0",
        "a",
        "zz/z",
        "zzz",
        "!",
        "!first/x",
    ];
    for text in texts {
        let after = format!("conformance/order/{text}");
        let due: Vec<String> = all.iter().filter(|k| **k > after).cloned().collect();
        let got = collect(s, "conformance/order/", Some(&after), view).await?;
        compare(&format!("after {after}"), &got, &due)?;
    }
    for (after, due) in [("a", &all[..]), ("conformance/", &all[..]), ("zzz", &[])] {
        let got = collect(s, "conformance/order/", Some(after), view).await?;
        compare(&format!("after {after}"), &got, due)?;
    }
    Ok(())
}

async fn list_prefix(s: &SharedStore, view: View) -> Found {
    let all = put_order(s).await?;
    for text in [
        "a", "app", "app-", "app-2", "app-2/", "app/", "app/d", "app/d/", "app/d/3", "app0", "zz", "none",
    ] {
        let prefix = format!("conformance/order/{text}");
        let due: Vec<String> = all.iter().filter(|k| k.starts_with(&prefix)).cloned().collect();
        compare(&prefix, &collect(s, &prefix, None, view).await?, &due)?;
        let after = "conformance/order/app/1";
        let due: Vec<String> = due.into_iter().filter(|k| k.as_str() > after).collect();
        let got = collect(s, &prefix, Some(after), view).await?;
        compare(&format!("{prefix} after {after}"), &got, &due)?;
    }
    Ok(())
}

async fn list_pages(s: &SharedStore, view: View) -> Found {
    // Half of them directories, so that pages end in both.
    let mut names: Vec<String> = (0..MANY)
        .map(|n| {
            if n % 2 == 0 {
                format!("{n:05}")
            } else {
                format!("d{}/{n:05}", n / 100)
            }
        })
        .collect();
    put_all(s, "many/", &names).await?;
    names.sort();
    let due: Vec<String> = names.iter().map(|n| format!("conformance/many/{n}")).collect();
    compare(
        "all pages",
        &collect(s, "conformance/many/", None, view).await?,
        &due,
    )
}

async fn odd_keys(s: &SharedStore) -> Found {
    // Not the backslash, which some servers take for a slash; no key of ours has one.
    let mut names: Vec<String> = " !\"#$%&'()*+,-.:;<=>?@[]^_`{|}~"
        .trim()
        .chars()
        .flat_map(|c| [format!("a{c}b"), format!("d{c}d/{c}{c}{c}")])
        .collect();
    names.extend(
        [
            "%2F",
            "a%20b",
            "a+b%2B",
            "...",
            "a..b/..c",
            ".hidden/.x",
            "-",
            "~/~",
            "&amp;",
            "<x>",
        ]
        .map(ToOwned::to_owned),
    );
    names.sort();
    names.dedup();
    roundtrip(s, "odd/", &names).await
}

async fn long_keys(s: &SharedStore) -> Found {
    let names = [
        format!("{}/{}", "n".repeat(200), "m".repeat(200)),
        "o".repeat(240),
    ];
    roundtrip(s, "long/", &names).await
}

async fn roundtrip(s: &SharedStore, under: &str, names: &[String]) -> Found {
    put_all(s, under, names).await?;
    for name in names {
        let key = key(&format!("{under}{name}"));
        let got = s.get(&key, None, View::Current).await.map_err(failed)?;
        ensure(got == name.as_bytes(), || format!("{key} holds {got:?}"))?;
        let head = s.head(&key, View::Current).await.map_err(failed)?;
        ensure(head.is_some_and(|h| h.size == name.len() as u64), || {
            format!("{key} has no head")
        })?;
    }
    let mut due: Vec<String> = names.iter().map(|n| format!("conformance/{under}{n}")).collect();
    due.sort();
    let got = collect(s, &format!("conformance/{under}"), None, View::Current).await?;
    compare("the list of them", &got, &due)
}

async fn delete(s: &SharedStore) -> Found {
    let (gone, stays) = (key("delete/a/b"), key("delete/a/c"));
    for key in [&gone, &stays] {
        put(s, key, pattern(10)).await?;
    }
    s.delete(&key("delete/never-there")).await.map_err(failed)?;
    s.delete(&key("delete/no/such/place")).await.map_err(failed)?;
    for _ in 0..2 {
        s.delete(&gone).await.map_err(failed)?;
        expect_fault(
            Fault::NotFound,
            "a deleted key",
            s.get(&gone, None, View::Current),
        )
        .await?;
        let head = s.head(&gone, View::Current).await.map_err(failed)?;
        ensure(head.is_none(), || "a deleted key has a head".to_owned())?;
        let list = collect(s, "conformance/delete/", None, View::Current).await?;
        compare("after the delete", &list, &[stays.to_string()])?;
    }
    // The key may be written again, in its directory that may be gone.
    s.delete(&stays).await.map_err(failed)?;
    put(s, &gone, pattern(11)).await?;
    let got = s.get(&gone, None, View::Current).await.map_err(failed)?;
    ensure(got == pattern(11), || {
        "a key written anew holds old bytes".to_owned()
    })
}

async fn now(s: &SharedStore) -> Found {
    let one = s.now().await.map_err(failed)?;
    let two = s.now().await.map_err(failed)?;
    // A Date header has whole seconds.
    let step = two - one;
    ensure((-1..60).contains(&step.num_seconds()), || {
        format!("two looks at the clock are {step} apart")
    })
}

async fn first(s: &SharedStore) -> Found {
    let key = key("first/object");
    let body = pattern(77);
    put(s, &key, body.clone()).await?;
    match s.get(&key, None, View::First).await {
        Ok(got) => ensure(got == body, || "the first version is another".to_owned())?,
        Err(e) if e.fault == Fault::Unsupported => return Ok(()),
        Err(e) => return Err(failed(e)),
    }
    let part = s.get(&key, Some(3..9), View::First).await.map_err(failed)?;
    ensure(part == body.slice(3..9), || "a range of it is another".to_owned())?;
    let head = s.head(&key, View::First).await.map_err(failed)?;
    ensure(head.is_some_and(|h| h.size == 77), || {
        "its head is another".to_owned()
    })?;
    let absent = Key::from_text("conformance/first/none");
    expect_fault(
        Fault::NotFound,
        "an absent key",
        s.get(&absent, None, View::First),
    )
    .await?;
    let head = s.head(&absent, View::First).await.map_err(failed)?;
    ensure(head.is_none(), || "an absent key has a head".to_owned())?;
    list_order(s, View::First).await?;
    list_after(s, View::First).await?;
    list_prefix(s, View::First).await?;
    list_pages(s, View::First).await
}

async fn probe(s: &SharedStore, abilities: &Abilities) -> Found {
    let host_now = s.now().await.map_err(failed)?;
    let found = s
        .probe("conformance/probe/again/", host_now)
        .await
        .map_err(failed)?;
    ensure(found.clock_offset_ms.abs() < 5_000, || {
        format!("the store is {} ms off itself", found.clock_offset_ms)
    })?;
    let again = Abilities {
        clock_offset_ms: abilities.clock_offset_ms,
        ..found
    };
    ensure(again == *abilities, || format!("{again:?} is not {abilities:?}"))
}

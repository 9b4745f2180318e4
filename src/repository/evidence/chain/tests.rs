use proptest::prelude::*;
use serde_json::Value;

use super::super::{PublicKey, SigningKey, acceptance, generate_key, seal, statement};
use super::*;

fn id(n: u64) -> Ulid {
    Ulid::from_parts(n, 0)
}

fn key() -> SigningKey {
    SigningKey::parse(&generate_key().unwrap().0).unwrap()
}

fn sealed(id: Ulid, previous: Vec<EvidenceRef>, key: Option<&SigningKey>, says: u64) -> bytes::Bytes {
    let statement = statement(id, previous, None, Vec::new(), Value::from(says)).unwrap();
    seal(&statement, key).unwrap()
}

fn made(id: Ulid, previous: Vec<EvidenceRef>, key: Option<&SigningKey>) -> Evidence {
    Evidence::parse(&sealed(id, previous, key, 0)).unwrap()
}

/// A chain of so many, each behind the one before.
fn whole(key: Option<&SigningKey>, count: u64) -> Vec<Evidence> {
    let mut chain: Vec<Evidence> = Vec::new();
    for n in 1..=count {
        let previous = chain.last().map(Evidence::reference).into_iter().collect();
        chain.push(made(id(n), previous, key));
    }
    chain
}

/// As it is read: what is not signed by the key is put aside.
fn read(files: &[(Ulid, Vec<u8>)], key: Option<&PublicKey>) -> Chain {
    let (mut evidence, mut aside) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        match Evidence::accept(*name, bytes, key) {
            Ok(read) => evidence.push(read),
            Err(why) => aside.push(Aside {
                name: name.to_string(),
                id: Some(*name),
                sha256: Some(crate::types::Digest::of(bytes).to_string()),
                why,
            }),
        }
    }
    Chain::new(evidence, aside)
}

#[test]
fn a_change_in_the_middle_is_told_whatever_it_is() {
    let own = key();
    let public = own.public();
    let mut files = Vec::new();
    let mut previous = Vec::new();
    for n in 1..=4 {
        let bytes = sealed(id(n), previous, Some(&own), n);
        previous = vec![Evidence::parse(&bytes).unwrap().reference()];
        files.push((id(n), bytes.to_vec()));
    }
    let told = |files: &[(Ulid, Vec<u8>)]| read(files, Some(&public)).problems(&[]).join("\n");
    assert_eq!(told(&files), "");
    let mut gone = files.clone();
    gone.remove(1);
    assert!(told(&gone).contains("which is missing"));
    assert!(told(&files[1..]).contains("which is missing"), "the first one");
    // Made anew by somebody without the key, and by nobody at all.
    let before = vec![Evidence::parse(&files[0].1).unwrap().reference()];
    for forger in [Some(&key()), None] {
        let mut forged = files.clone();
        forged[1].1 = sealed(id(2), before.clone(), forger, 99).to_vec();
        let chain = read(&forged, Some(&public));
        assert!(chain.aside()[0].why.contains("not signed"), "{:?}", chain.aside());
        assert!(chain.problems(&[])[0].contains("was changed since"));
        assert!(
            read(&forged, None).problems(&[])[0].contains("was changed since"),
            "the chain alone tells"
        );
    }
    // One under the name of another.
    let mut swapped = files.clone();
    swapped[1].1.clone_from(&files[2].1);
    let chain = read(&swapped, Some(&public));
    assert!(chain.aside()[0].why.contains("under another name"));
    assert!(chain.problems(&[])[0].contains("was changed since"));
    // Every byte of the newest one, which nothing follows.
    for at in 0..files[3].1.len() {
        let mut changed = files.clone();
        changed[3].1[at] ^= 1;
        let chain = read(&changed, Some(&public));
        let is_aside = chain.aside().len() == 1;
        // The name of a member that nobody reads, say: what is signed is as it was.
        let same = chain.evidence().len() == 4 && chain.evidence()[3].report() == &Value::from(4);
        assert!(is_aside || same, "byte {at}");
    }
}

#[test]
fn junk_breaks_nothing_and_is_followed_by_nobody() {
    let own = key();
    let stranger = key();
    let chain = whole(Some(&own), 2);
    let last = chain[1].reference();
    let ahead = Ulid::from_parts((1 << 48) - 1, 7);
    let unsigned = sealed(ahead, vec![last.clone()], None, 9);
    let foreign = sealed(id(9), vec![last.clone()], Some(&stranger), 9);
    let mut aside = Vec::new();
    for (name, bytes) in [
        (ahead, unsigned),
        (id(9), foreign),
        (id(3), bytes::Bytes::from_static(b"?")),
    ] {
        let why = Evidence::accept(name, &bytes, Some(&own.public())).unwrap_err();
        aside.push(Aside {
            name: name.to_string(),
            id: Some(name),
            sha256: Some(crate::types::Digest::of(&bytes).to_string()),
            why,
        });
    }
    let known = Chain::new(chain, aside);
    assert_eq!(known.problems(&[]), [""; 0]);
    assert_eq!(known.tips(&[]), [last]);
}

#[test]
fn what_one_clock_was_ahead_of_does_not_break_the_chain() {
    let mut chain = whole(None, 1);
    let future = made(id(9_000_000), vec![chain[0].reference()], None);
    let now = made(id(2), vec![future.reference()], None);
    chain.extend([now.clone(), future]);
    let chain = Chain::new(chain, Vec::new());
    assert_eq!(chain.problems(&[]), [""; 0]);
    assert_eq!((now.number(), chain.evidence().last().unwrap().id()), (3, id(2)));
    assert_eq!(chain.tips(&[]), [now.reference()]);
}

#[test]
fn two_at_once_are_joined_by_the_next() {
    let base = whole(None, 1);
    let one = made(id(5), vec![base[0].reference()], None);
    let other = made(id(4), vec![base[0].reference()], None);
    let forked = Chain::new([base[0].clone(), one.clone(), other.clone()], Vec::new());
    assert_eq!(forked.problems(&[]), [""; 0]);
    let tips = forked.tips(&[]);
    assert_eq!(
        tips,
        [other.reference(), one.reference()],
        "by number, then by id"
    );
    assert_eq!(forked.since(id(4)), [""; 0], "the other one is not later");
    let next = made(id(3), tips, None);
    assert_eq!(next.number(), 3);
    let joined = Chain::new([base[0].clone(), one, other, next], Vec::new());
    for noted in [1, 3, 4, 5] {
        assert_eq!(joined.since(id(noted)), [""; 0], "{noted}");
    }
}

#[test]
fn what_is_withheld_is_told_by_who_remembers_it() {
    let all = whole(None, 4);
    let known = [all[3].reference()];
    let of = |evidence: &[Evidence]| Chain::new(evidence.to_vec(), Vec::new());
    assert_eq!(of(&all).problems(&known), [""; 0]);
    let withheld = of(&all[..3]);
    assert_eq!(withheld.problems(&[]), [""; 0], "the chain alone can not tell");
    assert!(withheld.problems(&known)[0].contains("(number 4), which this host knows, is missing"));
    assert!(of(&[]).problems(&known)[0].contains("is missing"), "all of it");
    // The next one names it all the same, and then everybody can tell.
    let tips = withheld.tips(&known);
    assert_eq!(tips, [all[2].reference(), all[3].reference()]);
    let next = made(id(5), tips, None);
    assert_eq!(next.number(), 5);
    let goes_on = of(&[&all[..3], &[next]].concat());
    assert_eq!(goes_on.problems(&[]).len(), 1, "{:?}", goes_on.problems(&[]));
    assert_eq!(
        goes_on.problems(&known).len(),
        1,
        "told once: {:?}",
        goes_on.problems(&known)
    );
    // Something else in its place.
    let changed = [&all[..3], &[made(id(4), vec![all[1].reference()], None)]].concat();
    assert!(of(&changed).problems(&known)[0].contains("was changed since this host saw it"));
    assert_eq!(of(&changed).tips(&known).last(), known.first());
    // An auditor has a note, and a history that was written anew behind it.
    assert!(withheld.since(id(4))[0].contains("is missing"));
    let other = [&all[..2], &[made(id(8), vec![all[1].reference()], None)]].concat();
    let other = [&other[..], &[made(id(9), vec![other[2].reference()], None)]].concat();
    assert!(of(&[&other[..], &all[2..3]].concat()).since(id(3))[0].contains("is not joined to it"));
}

#[test]
fn a_number_and_a_name_are_what_they_say() {
    let text = |change: &dyn Fn(&mut super::super::Statement)| {
        let mut statement = statement(id(1), Vec::new(), None, Vec::new(), Value::Null).unwrap();
        change(&mut statement);
        Evidence::parse(&seal(&statement, None).unwrap())
            .err()
            .unwrap_or_default()
    };
    assert_eq!(text(&|_| {}), "");
    assert!(text(&|s| s.predicate.number = 2).contains("can not have the number 2"));
    assert!(text(&|s| s.predicate.format = 2).contains("is of format 2"));
    let other = made(id(7), Vec::new(), None).reference();
    let (twice, lies) = (
        vec![other.clone(), other.clone()],
        EvidenceRef { number: 6, ..other },
    );
    assert!(
        text(&|s| (s.predicate.number, s.predicate.previous) = (2, twice.clone()))
            .contains("another one twice")
    );
    let huge = EvidenceRef {
        number: u64::MAX,
        ..lies.clone()
    };
    assert!(text(&|s| s.predicate.previous = vec![huge.clone()]).contains("can not have the number"));
    // One that counts another wrong is told.
    let chain = Chain::new(
        [made(id(7), Vec::new(), None), made(id(8), vec![lies], None)],
        Vec::new(),
    );
    assert!(chain.problems(&[])[0].contains("as number 6, and that is number 1"));
}

/// What accepts losses, behind a chain.
fn accepting(n: u64, chain: &Chain, known: &[EvidenceRef], lost: &[EvidenceRef]) -> Evidence {
    let previous = chain.without(lost).tips(known);
    let said = serde_json::json!({"at": "2026-11-26T12:00:00Z"});
    let statement = acceptance(id(n), previous, None, lost.to_vec(), "no copy", said).unwrap();
    Evidence::parse(&seal(&statement, None).unwrap()).unwrap()
}

fn of(evidence: &[Evidence]) -> Chain {
    Chain::new(evidence.to_vec(), Vec::new())
}

#[test]
fn a_loss_that_is_accepted_is_no_hole_and_is_told_until_it_is_put_back() {
    let all = whole(None, 4);
    let broken = of(&[&all[..1], &all[2..]].concat());
    let holes = broken.holes(&[]);
    assert_eq!((holes.len(), &holes[0].name), (1, &all[1].reference()));
    let accepts = accepting(9, &broken, &[], &[all[1].reference()]);
    assert_eq!(accepts.number(), 5);
    let left = [&all[..1], &all[2..], std::slice::from_ref(&accepts)].concat();
    let accepted = of(&left);
    assert_eq!(accepted.problems(&[]), [""; 0]);
    let told: Vec<String> = accepted.losses().iter().map(ToString::to_string).collect();
    let (lost, by) = (id(2), id(9));
    assert_eq!(
        told,
        [format!(
            "{lost} (number 2) is lost, accepted by {by} on 2026-11-26: no copy"
        )]
    );
    assert_eq!(accepted.tips(&[]), [accepts.reference()], "it joins all");
    for noted in [1, 2, 3, 4, 9] {
        assert_eq!(accepted.since(id(noted)), [""; 0], "{noted}");
    }
    // Another hole is one all the same.
    let more = of(&[&left[..1], &left[2..]].concat());
    assert!(more.problems(&[])[0].contains("which is missing"));
    assert!(more.since(id(3))[0].contains("is missing"));
    // It comes back.
    let back = of(&[&all[..], &[accepts]].concat());
    assert_eq!(
        (back.problems(&[]), back.losses(), back.evidence().len()),
        (Vec::new(), Vec::new(), 5)
    );
    // Lost with what accepts it: the loss has to be accepted anew.
    let forgotten = of(&left[..3]);
    assert_eq!(forgotten.holes(&[]).len(), 1);
    // Nobody names it any more but what accepts it.
    let unnamed = of(&[&left[..1], &left[3..]].concat());
    assert_eq!(unnamed.losses().len(), 1);
    assert_eq!(unnamed.since(lost), [""; 0]);
}

#[test]
fn a_loss_that_only_this_host_knows_is_accepted_and_forgotten() {
    let all = whole(None, 4);
    let known = [all[3].reference()];
    let withheld = of(&all[..3]);
    let holes = withheld.holes(&known);
    assert_eq!((holes.len(), &holes[0].name), (1, &known[0]));
    let accepts = accepting(9, &withheld, &known, &known);
    assert_eq!(accepts.number(), 5, "later than what is lost");
    let accepted = of(&[&all[..3], std::slice::from_ref(&accepts)].concat());
    assert_eq!(accepted.problems(&known), [""; 0]);
    assert_eq!(accepted.problems(&[]), [""; 0], "nor to who does not know it");
    assert_eq!(accepted.tips(&known), [accepts.reference()]);
    assert_eq!(accepted.losses().len(), 1);
    assert_eq!(
        accepted.since(id(4)),
        [""; 0],
        "somebody noted what was accepted as lost"
    );
}

#[test]
fn who_lacks_the_key_accepts_nothing() {
    let own = key();
    let all = whole(Some(&own), 3);
    let broken = [all[0].clone(), all[2].clone()];
    let lost = vec![all[1].reference()];
    for forger in [None, Some(&key()), Some(&own)] {
        let previous = vec![all[2].reference()];
        let says = acceptance(id(9), previous, None, lost.clone(), "forged", Value::Null).unwrap();
        let bytes = seal(&says, forger).unwrap();
        let mut chain = of(&broken);
        match Evidence::accept(id(9), &bytes, Some(&own.public())) {
            Ok(accepts) => chain = of(&[&broken[..], &[accepts]].concat()),
            Err(why) => chain.aside.push(Aside {
                name: "9".to_owned(),
                id: Some(id(9)),
                sha256: None,
                why,
            }),
        }
        let is_own = forger.is_some_and(|key| key.public() == own.public());
        assert_eq!(chain.holes(&[]).is_empty(), is_own);
        assert_eq!(chain.losses().len(), usize::from(is_own));
    }
}

#[test]
fn what_took_the_place_of_what_was_accepted_as_lost_is_no_evidence() {
    let all = whole(None, 3);
    let other = Evidence::parse(&sealed(id(2), vec![all[0].reference()], None, 99)).unwrap();
    let changed = of(&[all[0].clone(), other.clone(), all[2].clone()]);
    assert!(changed.problems(&[])[0].contains("was changed since"));
    assert_eq!(
        changed.evidence().len(),
        3,
        "as long as nobody says what is lost, it may be it"
    );
    let lost = [all[1].reference()];
    let accepts = accepting(9, &changed, &[], &lost);
    let accepted = of(&[all[0].clone(), other.clone(), all[2].clone(), accepts.clone()]);
    assert_eq!(accepted.problems(&[]), [""; 0]);
    let ids: Vec<Ulid> = accepted.evidence().iter().map(Evidence::id).collect();
    assert_eq!(ids, [id(1), id(3), id(9)]);
    assert_eq!((accepted.aside().len(), accepted.aside()[0].id), (1, Some(id(2))));
    assert_eq!(accepted.losses().len(), 1);
    assert_eq!(accepted.tips(&[]), [accepts.reference()]);
    // The host that remembers the one before it was changed, too.
    assert_eq!(accepted.problems(&lost), [""; 0]);
    // What somebody else names as it is stays, whatever name of it was accepted as lost.
    let names_other = made(id(4), vec![other.reference()], None);
    let both = of(&[all[0].clone(), other, all[2].clone(), names_other, accepts]);
    assert_eq!((both.evidence().len(), both.problems(&[]).len()), (5, 0));
    assert_eq!(both.losses().len(), 1);
}

#[test]
fn an_acceptance_says_why_and_of_what_came_before() {
    let all = whole(None, 2);
    let text = |lost: &[EvidenceRef], reason: &str| {
        let previous = vec![all[1].reference()];
        let says = acceptance(id(9), previous, None, lost.to_vec(), reason, Value::Null).unwrap();
        Evidence::parse(&seal(&says, None).unwrap())
            .err()
            .unwrap_or_default()
    };
    let lost = all[0].reference();
    assert_eq!(text(std::slice::from_ref(&lost), "why"), "");
    assert!(text(std::slice::from_ref(&lost), " ").contains("without a reason"));
    assert!(text(&[], "why").contains("a reason for none"));
    assert!(text(&[lost.clone(), lost.clone()], "why").contains("twice"));
    let later = EvidenceRef { number: 3, ..lost };
    assert!(text(&[later], "why").contains("something later"));
}

proptest! {
    /// Hosts that drill at once, see a part of what is there, and remember what they saw: nothing is ever lost from view.
    #[test]
    fn however_many_drill_at_once_one_more_joins_all(steps in proptest::collection::vec((0usize..3, any::<bool>()), 1..25)) {
        let mut all: Vec<Evidence> = Vec::new();
        let mut seen: [Vec<Evidence>; 3] = Default::default();
        for (n, (host, looks)) in steps.into_iter().enumerate() {
            if looks {
                seen[host].clone_from(&all);
            }
            let tips = Chain::new(seen[host].clone(), Vec::new()).tips(&[]);
            // Clocks say what they like.
            let made = made(Ulid::from_parts(1 + (n as u64 * 7919) % 50, n as u128), tips, None);
            seen[host].push(made.clone());
            all.push(made);
        }
        let chain = Chain::new(all.clone(), Vec::new());
        prop_assert_eq!(chain.problems(&[]), Vec::<String>::new());
        let last = made(Ulid::from_parts(1, 1 << 70), chain.tips(&[]), None);
        let joined = Chain::new([&all[..], std::slice::from_ref(&last)].concat(), Vec::new());
        prop_assert_eq!(joined.tips(&[]), vec![last.reference()]);
        prop_assert_eq!(joined.evidence().last().unwrap().id(), last.id());
        // Any one that is taken away is missed.
        for gone in 0..all.len() {
            let mut left = all.clone();
            left.remove(gone);
            left.push(last.clone());
            prop_assert!(!Chain::new(left, Vec::new()).problems(&[]).is_empty());
        }
    }

    /// Whatever is lost, known to whomever: accepted it is no problem for anybody, and put back it is there again.
    #[test]
    fn whatever_is_lost_can_be_accepted_and_put_back(forks in proptest::collection::vec(any::<bool>(), 1..12), gone in any::<u16>()) {
        let mut all: Vec<Evidence> = Vec::new();
        for (n, forks) in (1u64..).zip(forks) {
            let seen = all.len() - usize::from(forks && all.len() > 1);
            let tips = of(&all[..seen]).tips(&[]);
            all.push(made(id(n), tips, None));
        }
        let known = of(&all).tips(&[]);
        let is_gone = |n: usize| gone & (1 << n) != 0;
        let left: Vec<Evidence> = (0..all.len()).filter(|n| !is_gone(*n)).map(|n| all[n].clone()).collect();
        let broken = of(&left);
        let lost: BTreeSet<EvidenceRef> = broken.holes(&known).into_iter().map(|hole| hole.name).collect();
        prop_assert_eq!(lost.is_empty(), left.len() == all.len());
        if lost.is_empty() {
            return Ok(());
        }
        let lost: Vec<EvidenceRef> = lost.into_iter().collect();
        let accepts = accepting(99, &broken, &known, &lost);
        let accepted = of(&[&left[..], std::slice::from_ref(&accepts)].concat());
        for who in [&known[..], &[]] {
            prop_assert_eq!(accepted.problems(who), Vec::<String>::new());
            prop_assert_eq!(accepted.tips(who), vec![accepts.reference()]);
        }
        prop_assert_eq!(accepted.losses().len(), lost.len());
        for noted in left.iter().map(Evidence::id).chain(lost.iter().map(|lost| lost.id)) {
            prop_assert_eq!(accepted.since(noted), Vec::<String>::new());
        }
        let back = of(&[&all[..], &[accepts]].concat());
        prop_assert_eq!(back.problems(&known), Vec::<String>::new());
        prop_assert_eq!(back.losses(), Vec::new());
    }
}

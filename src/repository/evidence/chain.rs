//! The chain of all evidence, judged. Pure.
//!
//! What is later is told by numbers that are signed, never by clocks. What is put aside breaks nothing by being there: only
//! what evidence or this host names, and is not as it is named, is a hole in the chain.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use ulid::Ulid;

use super::Evidence;
use crate::types::EvidenceRef;

/// Something that is not taken for evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Aside {
    /// Under which it was found: a key or a path.
    pub name: String,
    /// The id in that, if it has the name of evidence.
    #[serde(skip)]
    pub id: Option<Ulid>,
    /// Its digest, if it was read.
    #[serde(skip)]
    pub sha256: Option<String>,
    /// Why: a few words that follow the name.
    pub why: String,
}

/// All evidence, in its order, and what was put aside.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    evidence: Vec<Evidence>,
    aside: Vec<Aside>,
}

impl Chain {
    /// Of what was taken and what was not; of several with one id the first counts.
    pub fn new(evidence: impl IntoIterator<Item = Evidence>, aside: Vec<Aside>) -> Self {
        let mut evidence: Vec<Evidence> = evidence.into_iter().collect();
        evidence.sort_by_key(|e| (e.number(), e.id()));
        let mut seen = BTreeSet::new();
        evidence.retain(|e| seen.insert(e.id()));
        Self { evidence, aside }
    }

    /// The evidence: by number, then by id.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// What is no evidence.
    pub fn aside(&self) -> &[Aside] {
        &self.aside
    }

    fn by_id(&self) -> BTreeMap<Ulid, &Evidence> {
        self.evidence.iter().map(|e| (e.id(), e)).collect()
    }

    fn aside_by_id(&self) -> BTreeMap<Ulid, &Aside> {
        let named = self.aside.iter().filter_map(|a| Some((a.id?, a)));
        named.collect()
    }

    /// Every name of one by another, with who names it.
    fn names(&self) -> impl Iterator<Item = (&Evidence, &EvidenceRef)> {
        let previous = |e: &Evidence| e.statement.predicate.previous.len();
        self.evidence
            .iter()
            .flat_map(move |e| (0..previous(e)).map(move |n| (e, &e.statement.predicate.previous[n])))
    }

    /// What the next evidence names: all that no other one does. What a host remembers and can not be found is among it, and
    /// stands for what was put in its place.
    pub fn tips(&self, remembered: &[EvidenceRef]) -> Vec<EvidenceRef> {
        let named: BTreeSet<Ulid> = self.names().map(|(_, name)| name.id).collect();
        let aside = self.aside_by_id();
        let mut tips: BTreeMap<Ulid, EvidenceRef> = BTreeMap::new();
        for evidence in &self.evidence {
            tips.insert(evidence.id(), evidence.reference());
        }
        for known in remembered {
            // As it was, but not what is asked for now: of another key, say. It is nobody's previous.
            let is_aside = aside
                .get(&known.id)
                .is_some_and(|a| a.sha256.as_ref() == Some(&known.sha256));
            if !is_aside {
                tips.insert(known.id, known.clone());
            }
        }
        tips.retain(|id, _| !named.contains(id));
        let mut tips: Vec<EvidenceRef> = tips.into_values().collect();
        tips.sort_by_key(|tip| (tip.number, tip.id));
        tips
    }

    /// What is wrong with the chain, a sentence each, in its order.
    pub fn problems(&self, remembered: &[EvidenceRef]) -> Vec<String> {
        let (own, aside) = (self.by_id(), self.aside_by_id());
        let mut problems = Vec::new();
        for (evidence, name) in self.names() {
            let id = evidence.id();
            let changed = format!("evidence {id} follows {}, which was changed since", name.id);
            match (own.get(&name.id), aside.get(&name.id)) {
                (Some(before), _) if before.sha256 != name.sha256 => problems.push(changed),
                (Some(before), _) if before.number() != name.number => problems.push(format!(
                    "evidence {id} follows {} as number {}, and that is number {}",
                    name.id,
                    name.number,
                    before.number()
                )),
                (Some(_), _) => {}
                (None, Some(other)) if other.sha256.as_ref() == Some(&name.sha256) => {
                    problems.push(format!("evidence {id} follows {}, which {}", name.id, other.why))
                }
                (None, Some(_)) => problems.push(changed),
                (None, None) => problems.push(format!("evidence {id} follows {}, which is missing", name.id)),
            }
        }
        let named: BTreeSet<Ulid> = self.names().map(|(_, name)| name.id).collect();
        for known in remembered {
            let (id, number) = (known.id, known.number);
            let is = own.get(&id).map(|e| Some(&e.sha256));
            let is = is.or_else(|| aside.get(&id).map(|a| a.sha256.as_ref()));
            match is {
                Some(is) if is == Some(&known.sha256) => {}
                Some(_) => problems.push(format!("evidence {id} (number {number}) was changed since this host saw it")),
                // Told already by what follows it.
                None if named.contains(&id) => {}
                None => problems.push(format!(
                    "evidence {id} (number {number}), which this host knows, is missing: it is withheld, or was deleted"
                )),
            }
        }
        problems
    }

    /// Whether evidence that somebody noted is there, and everything later is joined to it: what is not, a sentence each.
    pub fn since(&self, noted: Ulid) -> Vec<String> {
        let Some(newest) = self.evidence.iter().find(|e| e.id() == noted) else {
            return vec![match self.aside_by_id().get(&noted) {
                Some(aside) => format!("evidence {noted}, the newest that was known, {}", aside.why),
                None => format!("evidence {noted}, the newest that was known, is missing"),
            }];
        };
        // Those that follow it, and what these follow beside it: a drill somewhere else at the same time. A name has a smaller
        // number than who gives it, so one way through the order finds all.
        let previous = |e: &Evidence| {
            let names = e.statement.predicate.previous.iter();
            names.map(|name| name.id).collect::<Vec<_>>()
        };
        let mut joined = BTreeSet::from([noted]);
        for evidence in &self.evidence {
            if previous(evidence).iter().any(|id| joined.contains(id)) {
                joined.insert(evidence.id());
            }
        }
        for evidence in self.evidence.iter().rev() {
            if evidence.id() != noted && joined.contains(&evidence.id()) {
                joined.extend(previous(evidence));
            }
        }
        let later = self.evidence.iter().filter(|e| e.number() > newest.number());
        later
            .filter(|e| !joined.contains(&e.id()))
            .map(|e| {
                format!(
                    "evidence {} (number {}) is later than {noted}, and is not joined to it",
                    e.id(),
                    e.number()
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::{PublicKey, SigningKey, generate_key, seal, statement};
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
    }
}

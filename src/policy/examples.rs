//! The policies that come with Lifeboat, carried by the program, and the recipients in them, which are nobody's.

use super::Policy;
use crate::error::{Error, Result};

/// The files of `policies/` that an operator starts from: name, content.
pub const FILES: &[(&str, &str)] = &[
    ("example.toml", include_str!("../../policies/example.toml")),
    (
        "development.toml",
        include_str!("../../policies/development.toml"),
    ),
    ("staging.toml", include_str!("../../policies/staging.toml")),
    ("production.toml", include_str!("../../policies/production.toml")),
    ("env.template", include_str!("../../policies/env.template")),
    ("environment.md", include_str!("../../policies/environment.md")),
    ("keys.md", include_str!("../../policies/keys.md")),
    (
        "policy.schema.json",
        include_str!("../../policies/policy.schema.json"),
    ),
];

/// Every recipient of these policies.
pub const RECIPIENTS: &[&str] = &[
    "age14z9nksh0kky37vc7zd5e37qkkm5fc8c9lttxc8x9atlzmvpq84ssch3zyq",
    "age1ud23nkx5dayv3mfdp343cmmmk3w398x4h6ytpnrukycmzc95aalsu4z7t2",
    "age1f6s35lducm6n2x5pfh44gtey2x59xhp4g6h8e3047n0geq9jn9es8er5hd",
    "age1wc4karrvh8dmm5pewfaj7egejs5qdhqhllupaf6s4d6pk2nfce4sfvcdx5",
    "age1f4vl96gfenqtzxl2mt6h0hhqswcf7x6vk7mc4azmu7hsll7pydxqwf27dg",
    "age1epgw35k8sy96ff9gzxz0zet7z7ytgfyvsck4kpafgwryaw7zxuqsqz2hy8",
];

/// Refuses to encrypt to a recipient of the examples: the operator holds no identity of it, so nobody could restore.
///
/// # Errors
/// The policy has one.
pub fn refuse(policy: &Policy) -> Result<()> {
    let recipients = &policy.encryption.recipients;
    match recipients.iter().find(|r| RECIPIENTS.contains(&r.as_str())) {
        None => Ok(()),
        Some(example) => Err(Error::usage(format!(
            "encryption.recipients has {example}, which is of the example policies and not yours"
        ))
        .hint(format!(
            "Make a key pair of your own with `backup key generate recovery.key`, and put the recipient that it prints in its place in {}.",
            policy.path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipient_of_the_example_policies_is_known() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");
        let mut found = 0;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            for word in text.split(|c: char| !c.is_ascii_alphanumeric()) {
                if word.parse::<age::x25519::Recipient>().is_ok() {
                    assert!(RECIPIENTS.contains(&word), "{word} of {}", path.display());
                    found += 1;
                }
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(FILES.iter().any(|(n, t)| *n == name && *t == text), "{name}");
        }
        assert!(found >= RECIPIENTS.len());
    }
}

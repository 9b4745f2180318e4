//! What a failed call of the SDK means, in our words and without a secret.

use std::error::Error as StdError;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::secret::SecretText;
use crate::store::{Fault, StoreError};

/// Characters of a server's words that are passed on.
const CAUSE_LIMIT: usize = 400;

/// What a server answered to a call that failed.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) status: Option<u16>,
    pub(super) code: String,
    message: String,
    request: String,
}

/// An error that may hold an answer.
pub(super) trait Answered {
    fn told(&self) -> Told;
}

impl<E: ProvideErrorMetadata> Answered for SdkError<E, HttpResponse> {
    fn told(&self) -> Told {
        let response = self.raw_response();
        let header = |name: &str| response.and_then(|r| r.headers().get(name)).unwrap_or_default();
        let mut told = Told {
            status: response.map(|r| r.status().as_u16()),
            request: header("x-amz-request-id").to_owned(),
            ..Told::default()
        };
        if let Self::ServiceError(error) = self {
            told.code = error.err().code().unwrap_or_default().to_owned();
            told.message = error.err().message().unwrap_or_default().to_owned();
        }
        told
    }
}

impl<E: Answered> From<&E> for Told {
    fn from(error: &E) -> Self {
        error.told()
    }
}

impl Told {
    /// What the caller can do.
    fn fault(&self) -> Fault {
        match self.code.as_str() {
            "NoSuchKey" | "NoSuchVersion" => return Fault::NotFound,
            "NoSuchBucket" => return Fault::NoBucket,
            "PreconditionFailed" => return Fault::Exists,
            "SlowDown"
            | "ServiceUnavailable"
            | "RequestLimitExceeded"
            | "ThrottlingException"
            | "Throttling"
            | "TooManyRequests"
            | "TooManyRequestsException"
            | "BandwidthLimitExceeded" => {
                return Fault::Throttled;
            }
            "RequestTimeout"
            | "InternalError"
            | "OperationAborted"
            | "ConditionalRequestConflict"
            | "IncompleteBody" => {
                return Fault::Unavailable;
            }
            "QuotaExceeded"
            | "QuotaExceededException"
            | "InsufficientStorage"
            | "InsufficientCapacity"
            | "XMinioStorageFull"
            | "XMinioAdminBucketQuotaExceeded"
            | "StorageQuotaExceeded"
            | "TotalStorageQuotaExceeded" => return Fault::Full,
            "InvalidRange" | "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" => {
                return Fault::Damaged;
            }
            "ObjectLocked" => return Fault::Locked,
            "NotImplemented" | "MethodNotAllowed" | "ObjectLockConfigurationNotFoundError" => {
                return Fault::Unsupported;
            }
            "ExpiredToken" | "InvalidToken" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" => {
                return Fault::Denied;
            }
            "AccessDenied" if self.speaks_of_a_lock() => return Fault::Locked,
            "InvalidRequest" if self.speaks_of_a_lock() => return Fault::Unsupported,
            _ => {}
        }
        match self.status {
            Some(401 | 403) => Fault::Denied,
            Some(408 | 409) => Fault::Unavailable,
            Some(412) => Fault::Exists,
            Some(416) => Fault::Damaged,
            Some(429 | 503) => Fault::Throttled,
            Some(405 | 501) => Fault::Unsupported,
            Some(507) => Fault::Full,
            Some(500..=599) => Fault::Unavailable,
            // S3's own by its request id, without the body that tells what is not there: it was cut on its way.
            Some(404) if self.code.is_empty() && !self.request.is_empty() => Fault::Unavailable,
            // A 404 that is not S3's own (a wrong endpoint, a proxy) proves nothing.
            _ => Fault::Refused,
        }
    }

    fn speaks_of_a_lock(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        ["object lock", "worm protected", "retention", "object is locked"]
            .iter()
            .any(|words| message.contains(words))
    }

    fn cause(&self) -> String {
        let status = self.status.map(|s| s.to_string()).unwrap_or_default();
        let mut text = format!("the store answers {status}");
        for part in [&self.code, &self.message] {
            if !part.is_empty() {
                text.push(' ');
                text.push_str(part);
            }
        }
        if !self.request.is_empty() {
            text.push_str(" (request ");
            text.push_str(&self.request);
            text.push(')');
        }
        text
    }
}

/// Takes the credentials out of whatever a server or a library says.
#[derive(Clone, Debug, Default)]
pub(super) struct Scrub(Vec<SecretText>);

impl Scrub {
    pub(super) fn new(secrets: impl IntoIterator<Item = SecretText>) -> Self {
        Self(secrets.into_iter().filter(|s| !s.expose().is_empty()).collect())
    }

    /// A failed call.
    pub(super) fn failed<E>(&self, what: impl Into<String>, error: &SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let told = error.told();
        let (fault, cause) = match error {
            SdkError::ServiceError(_) => (told.fault(), told.cause()),
            SdkError::ConstructionFailure(_) => (Fault::Refused, chain(error)),
            SdkError::TimeoutError(_) => (Fault::Unavailable, "no answer in time".to_owned()),
            SdkError::DispatchFailure(_) => {
                let cause = without_credentials(chain(error));
                let fault = if speaks_of_credentials(&cause) {
                    Fault::Denied
                } else {
                    Fault::Unavailable
                };
                (fault, cause)
            }
            // An answer that is no S3 answer.
            _ => match told.status {
                Some(200..=299) | None => (Fault::Unavailable, chain(error)),
                Some(_) => (told.fault(), told.cause()),
            },
        };
        StoreError::new(fault, what, self.clean(&cause))
    }

    /// A body that ended too early.
    pub(super) fn cut(&self, what: &str, error: &(dyn StdError + 'static)) -> StoreError {
        StoreError::new(Fault::Unavailable, what, self.clean(&chain(error)))
    }

    fn clean(&self, text: &str) -> String {
        let mut text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        for secret in &self.0 {
            text = text.replace(secret.expose(), "<secret>");
        }
        if let Some((end, _)) = text.char_indices().nth(CAUSE_LIMIT) {
            text.truncate(end);
            text.push('…');
        }
        text
    }
}

/// Where nothing gave credentials the SDK tells of the last place that it looked at, which is the least likely one.
fn without_credentials(cause: String) -> String {
    let nothing = ["no providers in chain", "no credentials found in chain", "IMDS"];
    if nothing.iter().any(|text| cause.contains(text)) {
        return "no credentials: set repository.access_key_id and secret_access_key in the policy, or AWS_ACCESS_KEY_ID and \
                AWS_SECRET_ACCESS_KEY"
            .to_owned();
    }
    cause
}

fn speaks_of_credentials(cause: &str) -> bool {
    let cause = cause.to_ascii_lowercase();
    cause.contains("credentials") || cause.contains("identity")
}

/// The causes below an error of the SDK, each once; its own text says nothing.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    // A chain that is longer tells nothing new.
    for _ in 0..12 {
        let Some(error) = next else { break };
        let part = error.to_string();
        if !parts.iter().any(|known| known.contains(&part)) {
            parts.push(part);
        }
        next = error.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, code: &str, message: &str) -> Fault {
        Told {
            status: Some(status),
            code: code.to_owned(),
            message: message.to_owned(),
            request: String::new(),
        }
        .fault()
    }

    #[test]
    fn an_answer_of_the_store_whose_body_was_cut_is_asked_for_again() {
        let told = |request: &str| Told {
            status: Some(404),
            request: request.to_owned(),
            ..Told::default()
        };
        assert_eq!(told("18EBA29EE98BFB4C").fault(), Fault::Unavailable);
        assert_eq!(told("").fault(), Fault::Refused, "anybody's");
    }

    #[test]
    fn every_answer_has_its_fault() {
        for (status, code, message, fault) in [
            (404, "NoSuchKey", "", Fault::NotFound),
            (404, "NoSuchBucket", "", Fault::NoBucket),
            (404, "", "", Fault::Refused),
            (403, "AccessDenied", "Access Denied.", Fault::Denied),
            (
                403,
                "AccessDenied",
                "Access Denied because object protected by object lock.",
                Fault::Locked,
            ),
            (403, "SignatureDoesNotMatch", "", Fault::Denied),
            (403, "RequestTimeTooSkewed", "", Fault::Denied),
            (400, "ExpiredToken", "", Fault::Denied),
            (409, "ConditionalRequestConflict", "", Fault::Unavailable),
            (412, "PreconditionFailed", "", Fault::Exists),
            (416, "InvalidRange", "", Fault::Damaged),
            (400, "BadDigest", "", Fault::Damaged),
            (429, "", "", Fault::Throttled),
            (503, "SlowDown", "", Fault::Throttled),
            (503, "", "", Fault::Throttled),
            (500, "InternalError", "", Fault::Unavailable),
            (502, "", "", Fault::Unavailable),
            (400, "RequestTimeout", "", Fault::Unavailable),
            (507, "XMinioStorageFull", "", Fault::Full),
            (507, "", "", Fault::Full),
            (403, "QuotaExceeded", "", Fault::Full),
            (501, "NotImplemented", "", Fault::Unsupported),
            (
                400,
                "InvalidRequest",
                "Bucket is missing Object Lock Configuration",
                Fault::Unsupported,
            ),
            (400, "InvalidArgument", "", Fault::Refused),
            (301, "PermanentRedirect", "", Fault::Refused),
        ] {
            assert_eq!(told(status, code, message), fault, "{status} {code} {message}");
        }
    }

    #[test]
    fn no_secret_and_no_control_character_is_passed_on() {
        let scrub = Scrub::new([
            SecretText::new("AKID".to_owned()),
            SecretText::new("hush".to_owned()),
        ]);
        let clean = scrub.clean(&format!("the key AKID\nwith hush\u{1b}[31m {}", "x".repeat(1000)));
        assert!(
            clean.starts_with("the key <secret> with <secret> [31m x"),
            "{clean}"
        );
        assert_eq!(clean.chars().count(), CAUSE_LIMIT + 1);
    }
}

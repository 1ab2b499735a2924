//! What etcd's errors mean for us, in words that name the fix.
//!
//! etcd's own messages tell its errors apart; its gRPC codes are shared by several (`api/v3rpc/rpctypes/error.go`).

use std::error::Error as _;

use etcd_client::Error;

use crate::store::StoreProblem;

/// What to do after a request has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// This member cannot serve it. Another may.
    Member(String),
    /// The token that the password was exchanged for is no longer good. A new connection gets another.
    Token,
    /// The answer is longer than we accept (4 MiB, tonic's default).
    TooLong,
    /// Every member would say so.
    Final(StoreProblem),
}

/// The codes of gRPC statuses that matter here (gRPC's documentation, `statuscodes.md`).
const INVALID_ARGUMENT: i32 = 3;
const PERMISSION_DENIED: i32 = 7;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const UNAUTHENTICATED: i32 = 16;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::GRpcStatus(status) => {
                let mut reasons = vec![status.message().to_owned()];
                let mut source = status.source();
                while let Some(error) = source {
                    reasons.push(error.to_string());
                    source = error.source();
                }
                Self::of_status(status.code() as i32, &reasons)
            }
            Error::TransportError(error) => {
                let mut reasons = vec![error.to_string()];
                let mut source = error.source();
                while let Some(error) = source {
                    reasons.push(error.to_string());
                    source = error.source();
                }
                Self::of_transport(&reasons)
            }
            Error::InvalidArgs(_) | Error::InvalidUri(_) => Self::Final(StoreProblem::Nonsense {
                why: format!("{error}; write a URL such as \"https://192.0.2.1:2379\" in endpoints"),
            }),
            other => Self::Member(other.to_string()),
        }
    }
}

impl Failure {
    /// The failure of a watch that the member has ended, which says why in words only.
    pub(super) fn of_cancel(reason: &str) -> Self {
        Self::of_words(reason).unwrap_or_else(|| Self::Member(format!("it has ended the watch: {reason}")))
    }

    fn of_status(code: i32, reasons: &[String]) -> Self {
        let message = reasons.first().map_or("", String::as_str);
        if let Some(known) = Self::of_words(message) {
            return known;
        }
        match code {
            UNIMPLEMENTED => nonsense("it is not etcd, or older than 3.4; check endpoints"),
            OUT_OF_RANGE if message.contains("message length too large") => Self::TooLong,
            _ => Self::of_transport(reasons),
        }
    }

    /// What etcd says in its own words, if we know them.
    fn of_words(message: &str) -> Option<Self> {
        let says = |words: &str| message.contains(words);
        Some(if says("required revision has been compacted") {
            Self::Final(StoreProblem::Compacted)
        } else if says("invalid auth token") || says("revision of auth store is old") {
            Self::Token
        } else if says("authentication failed") {
            denied("it does not accept the password; check username and password_file")
        } else if says("user name is empty") {
            denied(
                "it lets only users in; set username and password_file, or a certificate with a user's name",
            )
        } else if says("authentication is not enabled") {
            denied("it has no users; remove username and password_file, or turn authentication on there")
        } else if says("permission denied") {
            denied("the user may not do that; give it the role that docs/etcd.md describes")
        } else if says("database space exceeded") {
            Self::Final(StoreProblem::Unavailable {
                why: "its disk quota is used up; compact and defragment it, then disarm its alarm".into(),
                retry_after: None,
            })
        } else if says("no leader") {
            Self::Member("this member is cut off from the majority of its cluster".into())
        } else {
            return None;
        })
    }

    fn of_transport(reasons: &[String]) -> Self {
        let says = |words: &str| reasons.iter().any(|reason| reason.contains(words));
        // Two authorities may have the same name.
        if ["UnknownIssuer", "BadSignature", "UnsupportedSignatureAlgorithm"].into_iter().any(says) {
            return denied("its certificate is not signed by ca_file's; check ca_file");
        }
        if says("certificate not valid for name") || says("NotValidForName") {
            return denied("its certificate is for another name; write a name or address of it in endpoints");
        }
        if says("certificate expired") || says("Expired") {
            return denied("its certificate has expired, or this machine's clock is wrong");
        }
        if says("fatal alert: CertificateRequired") {
            return denied("it wants to see a certificate of ours; set cert_file and key_file");
        }
        if let Some(reason) = reasons.iter().find(|reason| reason.contains("invalid peer certificate")) {
            return denied(format!("{reason}; check ca_file, and the certificate that this member shows"));
        }
        if ["BadCertificate", "UnknownCA", "CertificateUnknown", "CertificateExpired"]
            .iter()
            .any(|alert| says(&format!("fatal alert: {alert}")))
        {
            return denied("it does not accept our certificate; check cert_file and key_file");
        }
        if says("InvalidContentType") {
            return denied("it does not speak TLS; write http:// in endpoints, or turn TLS on there");
        }
        // So it looks, too, when a member dies meanwhile.
        if says("tls handshake eof") {
            return Self::Member(
                "it hangs up instead of speaking TLS; if that does not pass, turn TLS on there, or write http:// in \
                 endpoints"
                    .into(),
            );
        }
        // The innermost reason says most; those around it say "transport error".
        Self::Member(reasons.last().cloned().unwrap_or_else(|| "no reason is known".into()))
    }
}

/// Whether a member has answered that we may not ask that. (Without a token it says that the user's name is empty,
/// which is an invalid argument.)
pub(super) fn is_refusal(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    [INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED].contains(&(status.code() as i32))
}

pub(super) fn denied(why: impl Into<String>) -> Failure {
    Failure::Final(StoreProblem::Denied { why: why.into() })
}

pub(super) fn nonsense(why: impl Into<String>) -> Failure {
    Failure::Final(StoreProblem::Nonsense { why: why.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_of_tls_name_the_fix() {
        for (reason, expected) in [
            (
                "invalid peer certificate: certificate not valid for name \"192.168.50.10\"; certificate is only valid \
                 for IpAddress(192.168.50.99)",
                "its certificate is for another name; ",
            ),
            (
                "invalid peer certificate: Other(OtherError(UnsupportedSignatureAlgorithmForPublicKeyContext { \
                 signature_algorithm_id: [6, 8], public_key_algorithm_id: [6, 7] }))",
                "its certificate is not signed by ca_file's; ",
            ),
            ("invalid peer certificate: UnknownIssuer", "its certificate is not signed by ca_file's; "),
            (
                "invalid peer certificate: certificate expired: verification time 9",
                "its certificate has expired",
            ),
            (
                "invalid peer certificate: Revoked",
                "invalid peer certificate: Revoked; check ca_file, and the certificate that this member shows",
            ),
            ("received corrupt message of type InvalidContentType", "it does not speak TLS; "),
            (
                "received fatal alert: CertificateRequired",
                "it wants to see a certificate of ours; set cert_file",
            ),
            ("received fatal alert: BadCertificate", "it does not accept our certificate; "),
        ] {
            let reasons = ["transport error", reason].map(str::to_owned);
            let Failure::Final(StoreProblem::Denied { why }) = Failure::of_transport(&reasons) else {
                panic!("{reason} passes by itself")
            };
            assert!(why.starts_with(expected), "{why}");
        }
        let hung_up = Failure::of_transport(&["transport error".into(), "tls handshake eof".into()]);
        assert!(
            matches!(&hung_up, Failure::Member(why) if why.contains("write http:// in endpoints")),
            "{hung_up:?}"
        );
        assert_eq!(
            Failure::of_transport(&["transport error".into(), "Connection refused".into()]),
            Failure::Member("Connection refused".into())
        );
    }
}

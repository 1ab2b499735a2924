//! What we show to etcd, and how we check who it is: read from files for every new connection, so that certificates and
//! passwords can be replaced while the agent runs.

use std::{fs, path::Path, time::Duration};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use super::Settings;

/// How long a member may take until a connection to it exists.
const CONNECT: Duration = Duration::from_secs(2);

/// How often a member is pinged while it owes us answers or a watch. Its default forbids less than 5 s
/// (`--grpc-keepalive-min-time`).
const PING: Duration = Duration::from_secs(6);

/// How long it may take to answer a ping.
const PONG: Duration = Duration::from_secs(3);

/// The options of a connection to this URL.
///
/// # Errors
/// Which file is missing or wrong, in a sentence.
pub(super) fn options(settings: &Settings, url: &str) -> Result<ConnectOptions, String> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(PING, PONG)
        // etcd hangs up on clients that ping without having asked anything (PermitWithoutStream).
        .with_keep_alive_while_idle(false)
        .with_require_leader(true);
    if url.starts_with("https://") {
        options = options.with_tls(tls(settings)?);
    }
    if let Some(name) = &settings.username {
        let file =
            settings.password_file.as_deref().ok_or("there is a username, but no password_file: add it")?;
        let password = String::from_utf8(read(file)?)
            .map_err(|_| format!("the password in {} is not UTF-8", file.display()))?;
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(format!("{} is empty: write the password of {name:?} there", file.display()));
        }
        options = options.with_user(name, password);
    }
    Ok(options)
}

fn tls(settings: &Settings) -> Result<TlsOptions, String> {
    let mut tls = TlsOptions::new().timeout(CONNECT);
    tls = match &settings.ca_file {
        Some(file) => tls.ca_certificate(Certificate::from_pem(pem(file, "CERTIFICATE")?)),
        None => tls.with_native_roots(),
    };
    match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => {
            let (cert, key) = (pem(cert, "CERTIFICATE")?, pem(key, "PRIVATE KEY")?);
            Ok(tls.identity(Identity::from_pem(cert, key)))
        }
        (None, None) => Ok(tls),
        (Some(_), None) => {
            Err("there is a cert_file, but no key_file: add the certificate's private key".into())
        }
        (None, Some(_)) => Err("there is a key_file, but no cert_file: add the key's certificate".into()),
    }
}

/// Reads a file with PEM blocks of this kind. A file without any would be accepted by the TLS library, and the server
/// would then be refused for a reason that names no file.
fn pem(path: &Path, kind: &str) -> Result<Vec<u8>, String> {
    let content = read(path)?;
    let end = format!("{kind}-----");
    if content.windows(end.len()).any(|window| window == end.as_bytes()) {
        return Ok(content);
    }
    Err(format!("{} has no PEM block of the kind {kind}: write one there", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings =
            Settings { endpoints: vec!["https://e:2379".into()], mesh: "m".into(), ..Settings::default() };
        change(&mut settings);
        options(&settings, "https://e:2379").unwrap_err()
    }

    #[test]
    fn each_mistake_names_its_file_and_the_fix() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (empty, text) = (file("empty", "\n"), file("text", "hello"));
        assert!(
            refusal(|settings| settings.ca_file = Some("/nonexistent/ca".into()))
                .contains("/nonexistent/ca: No such")
        );
        assert!(
            refusal(|settings| settings.ca_file = Some(text.clone()))
                .ends_with("of the kind CERTIFICATE: write one there")
        );
        assert!(refusal(|settings| settings.cert_file = Some(text.clone())).contains("no key_file"));
        assert!(refusal(|settings| settings.key_file = Some(text.clone())).contains("no cert_file"));
        assert!(refusal(|settings| settings.username = Some("wireloom".into())).contains("no password_file"));
        let without_password = refusal(|settings| {
            (settings.username, settings.password_file) = (Some("wireloom".into()), Some(empty.clone()));
        });
        assert!(
            without_password.ends_with("is empty: write the password of \"wireloom\" there"),
            "{without_password}"
        );
    }
}

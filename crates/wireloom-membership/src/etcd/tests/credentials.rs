//! TLS and users.

use std::{fs, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, Permission, PermissionType, TlsOptions};
use futures::{Stream, StreamExt as _};
use tokio::time::sleep;

use super::fixtures::{
    authority::Authority,
    cluster::{Edition, Etcd},
    inside::{inside, soon, until},
};
use crate::{
    etcd::{self, Settings},
    store::{Change, Collection as _, OwnRecord as _, StoreError, StoreProblem},
};

const RECORD: &str = r#"{"public_key":"K1"}"#;

fn denial(error: StoreError) -> String {
    let StoreProblem::Denied { why } = error.problem else { panic!("{error}") };
    why
}

async fn refusal(settings: &Settings) -> String {
    denial(etcd::open(settings, "a").0.list().await.unwrap_err())
}

#[test]
fn certificates_and_users_are_checked_and_what_is_wrong_is_named() {
    let (mut etcd, authority) = Etcd::start_with_tls(Edition::Modern);
    inside(&etcd.space.clone(), async || {
        let stranger = Authority::new(&etcd.directory.path().join("stranger"));
        let (root, of_stranger) = (authority.identify("root"), stranger.identify("root"));
        let mut settings = Settings {
            ca_file: Some(authority.certificate.clone()),
            cert_file: Some(root.certificate.clone()),
            key_file: Some(root.key.clone()),
            ..etcd.settings()
        };
        etcd::open(&settings, "a").0.list().await.unwrap();

        let wrong = Settings { ca_file: Some(stranger.certificate.clone()), ..settings.clone() };
        assert_eq!(
            refusal(&wrong).await,
            "https://127.0.0.1:2379: its certificate is not signed by ca_file's; check ca_file"
        );
        let wrong = Settings { ca_file: None, ..settings.clone() };
        assert!(refusal(&wrong).await.contains("check ca_file"));
        let wrong = Settings { endpoints: vec!["https://127.0.0.2:2379".into()], ..settings.clone() };
        let unreachable = etcd::open(&wrong, "a").0.list().await.unwrap_err();
        assert!(
            unreachable.to_string().ends_with("https://127.0.0.2:2379: Connection refused (os error 111)"),
            "{unreachable}"
        );
        for (cert, key) in [(None, None), (Some(&of_stranger.certificate), Some(&of_stranger.key))] {
            let wrong = Settings { cert_file: cert.cloned(), key_file: key.cloned(), ..settings.clone() };
            let why = etcd::open(&wrong, "a").0.list().await.unwrap_err().to_string();
            let fix =
                if cert.is_some() { "check cert_file and key_file" } else { "set cert_file and key_file" };
            assert!(why.ends_with(fix), "{why}");
        }

        // Users, as docs/etcd.md sets them up.
        let pem = |path| fs::read(path).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(pem(&authority.certificate)))
            .identity(Identity::from_pem(pem(&root.certificate), pem(&root.key)));
        let mut client = etcd.client(Some(ConnectOptions::new().with_tls(tls.clone()))).await;
        client.user_add("root", "secret", None).await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.role_add("node-a").await.unwrap();
        for permission in [
            Permission::read("/wireloom/v1/m/").with_prefix(),
            Permission::new(PermissionType::Readwrite, "/wireloom/v1/m/nodes/a"),
            Permission::new(PermissionType::Readwrite, "/wireloom/v1/m/keys/").with_prefix(),
        ] {
            client.role_grant_permission("node-a", permission).await.unwrap();
        }
        client.user_add("a", "password", None).await.unwrap();
        client.user_grant_role("a", "node-a").await.unwrap();
        client.auth_enable().await.unwrap();

        let password = etcd.directory.path().join("password");
        let of_a = authority.identify("nobody");
        settings = Settings {
            cert_file: Some(of_a.certificate),
            key_file: Some(of_a.key),
            username: Some("a".into()),
            password_file: Some(password.clone()),
            ..settings
        };
        fs::write(&password, "wrong\n").unwrap();
        let (mut records, mut own) = etcd::open(&settings, "a");
        let why = denial(records.list().await.unwrap_err());
        assert_eq!(
            why,
            "https://127.0.0.1:2379: it does not accept the password; check username and password_file"
        );
        // The file is read again.
        fs::write(&password, "password\n").unwrap();
        let listed = records.list().await.unwrap();
        own.put(RECORD.into()).await.unwrap();
        let mut watch = records.watch(listed.position.version).await.unwrap();
        soon("a change", watch_until(&mut watch, "nodes/a")).await;

        // Only its own record, and only in its own mesh.
        let (_, mut of_b) = etcd::open(&settings, "b");
        let why = denial(of_b.put(r#"{"public_key":"K2"}"#.into()).await.unwrap_err());
        assert!(
            why.ends_with("the user may not do that; give it the role that docs/etcd.md describes"),
            "{why}"
        );
        let elsewhere = Settings { mesh: "other".into(), ..settings.clone() };
        assert!(refusal(&elsewhere).await.contains("may not do that"));
        let mut elsewhere = etcd::open(&elsewhere, "a").0;
        let not_watched = match elsewhere.watch(listed.position.version).await {
            Ok(_) => panic!("another mesh can be watched"),
            Err(error) => denial(error),
        };
        assert!(not_watched.contains("may not do that"), "{not_watched}");
        // A certificate's name is a user's, too.
        let by_name = authority.identify("a");
        let by_name = Settings {
            cert_file: Some(by_name.certificate),
            key_file: Some(by_name.key),
            username: None,
            password_file: None,
            ..settings.clone()
        };
        etcd::open(&by_name, "a").0.list().await.unwrap();

        // A token that is not used is forgotten after a while, as that of another client shows, which was used last.
        // Then a new one is asked for.
        let options = ConnectOptions::new().with_user("a", "password").with_tls(tls.clone());
        let mut idle = Client::connect(&settings.endpoints, Some(options)).await.unwrap();
        idle.get("/wireloom/v1/m/nodes/a", None).await.unwrap();
        sleep(Duration::from_millis(3500)).await;
        let expired = idle.get("/wireloom/v1/m/nodes/a", None).await.unwrap_err().to_string();
        assert!(expired.contains("invalid auth token"), "{expired}");
        own.put(RECORD.into()).await.unwrap();
        // Nor do tokens survive a member.
        etcd.kill(0);
        etcd.start_member(0);
        until("the member to be back", async || records.position().await.ok()).await;
        own.delete().await.unwrap();
        assert!(records.list().await.unwrap().objects.is_empty());
    });
}

async fn watch_until(watch: &mut (impl Stream<Item = Result<Change, StoreError>> + Unpin), name: &str) {
    while let Some(change) = watch.next().await {
        if matches!(change.unwrap(), Change::Put(changed, ..) if changed == name) {
            return;
        }
    }
    panic!("the watch has ended");
}

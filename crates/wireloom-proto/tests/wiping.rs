//! No secret outlives its use in the memory of the process.
//!
//! A child process runs two devices with keys that this process knows. After each stage of a handshake's life, this
//! process reads the child's memory and looks for every secret of the handshake: those still in use must be there,
//! which proves that they would be found, and all others must not.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::iter;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use blake2::{Blake2s256, Digest};
use curve25519_dalek::MontgomeryPoint;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use wireloom_proto::{Device, Instant, Now, PeerId, UnixTime, message};
use wireloom_types::limits::REJECT_AFTER_TIME;
use wireloom_types::{PresharedKey, PrivateKey};

/// The keys and the devices' seeds, as the program's file has them: each byte is masked, so that they are nowhere in
/// the child's memory but where the devices put them.
const MASK: u8 = 0xa5;
const ALICE: [u8; 32] = *b"Alice keeps this masked key well";
const BOB: [u8; 32] = *b"and Bob has one of his own here!";
const PSK: [u8; 32] = *b"The two of them share this third";
const ALICE_SEED: [u8; 32] = *b"from here come Alice's ephemeral";
const BOB_SEED: [u8; 32] = *b"keys, and Bob's come out of here";

fn unmask(masked: &[u8; 32]) -> [u8; 32] {
    black_box(masked).map(|byte| byte ^ MASK)
}

/// What the child does when it is told to. It answers with a line that begins with `@`.
const CONFIGURE: &str = "configure";
const BEGIN: &str = "begin";
const ANSWER: &str = "answer";
const EXPIRE: &str = "expire";
const FORGET: &str = "forget";

/// In the environment of the child, which runs this test, too.
const IS_CHILD: &str = "WIRELOOM_TEST_IS_CHILD";

#[test]
fn no_secret_outlives_its_use_in_memory() {
    if std::env::var_os(IS_CHILD).is_some() {
        return two_devices();
    }
    let mut child = Devices::start();
    child.tell(CONFIGURE);
    let initiation = child.tell(BEGIN);
    let response = child.tell(ANSWER);
    let secrets = Secrets::of(&initiation, &response);

    let mut child = Devices::start();
    child.tell(CONFIGURE);
    child.expect(&secrets, "configured", |kind| {
        matches!(kind, Kind::Configured | Kind::InitiatorsSeed | Kind::RespondersSeed)
    });
    assert_eq!(child.tell(BEGIN), initiation, "everything follows from the seeds");
    child.expect(&secrets, "under way", |kind| {
        matches!(kind, Kind::Configured | Kind::RespondersSeed | Kind::StaticStatic | Kind::Pending)
    });
    assert_eq!(child.tell(ANSWER), response);
    child.expect(&secrets, "in session", |kind| {
        matches!(kind, Kind::Configured | Kind::StaticStatic | Kind::Session)
    });
    child.tell(EXPIRE);
    child.expect(&secrets, "expired", |kind| matches!(kind, Kind::Configured | Kind::StaticStatic));
    child.tell(FORGET);
    child.expect(&secrets, "forgotten", |_| false);
}

/// What the child does.
fn two_devices() {
    let at = |seconds| {
        let elapsed = Duration::from_secs(seconds);
        Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
    };
    let (mut alice, mut bob) = (device(&ALICE_SEED), device(&BOB_SEED));
    overwrite_stack();
    let mut initiation = Vec::new();
    for command in std::io::stdin().lines() {
        let mut answer = Vec::new();
        match &*command.expect("a command") {
            CONFIGURE => {
                configure(&mut alice, at(1000), &ALICE, &BOB, 2);
                configure(&mut bob, at(1000), &BOB, &ALICE, 1);
            }
            BEGIN => {
                initiation = send(&mut alice, at(1001));
                answer.clone_from(&initiation);
            }
            ANSWER => {
                bob.handle_handshake(at(1002), address(1).into(), &initiation).expect("an initiation");
                answer = transmit(&mut bob, at(1002));
                alice.handle_handshake(at(1003), address(2).into(), &answer).expect("a response");
                let keepalive = transmit(&mut alice, at(1003));
                receive(&mut bob, at(1004), 1, keepalive);
                let keepalive = send(&mut bob, at(1004));
                receive(&mut alice, at(1004), 2, keepalive);
            }
            EXPIRE => {
                let expired = at(1004 + 3 * REJECT_AFTER_TIME.as_secs());
                alice.handle_timeout(expired);
                bob.handle_timeout(expired);
            }
            FORGET => {
                for device in [&mut alice, &mut bob] {
                    device.configure(at(2000), |configuration| {
                        configuration.remove_all_peers();
                        configuration.set_private_key(None);
                    });
                }
            }
            other => panic!("no such command: {other}"),
        }
        println!("@{}", base16ct::lower::encode_string(&answer));
    }
}

#[inline(never)]
fn device(masked_seed: &[u8; 32]) -> Device {
    Device::new(&unmask(masked_seed))
}

/// Overwrites what [`device`] left on the stack. It is the caller's task to wipe the seed.
#[inline(never)]
fn overwrite_stack() {
    black_box(&mut [0_u8; 1 << 16]);
}

fn address(number: u8) -> std::net::SocketAddr {
    ([192, 0, 2, number], 51820).into()
}

/// The keys are unmasked within a change of their own, because a device wipes the stack behind it. Whoever sets the
/// endpoint in the same change may find bytes of a key in the address's padding.
fn configure(device: &mut Device, now: Now, own: &[u8; 32], peer: &[u8; 32], number: u8) {
    device.configure(now, |configuration| {
        configuration.set_private_key(Some(PrivateKey::from_bytes(unmask(own))));
        let peer = PrivateKey::from_bytes(unmask(peer)).public_key();
        let mut peer = configuration.add_peer(peer).expect("not our own key");
        peer.set_preshared_key(Some(&PresharedKey::from_bytes(unmask(&PSK))));
    });
    let peer = *device.peers().next().expect("a peer").public_key;
    device.configure(now, |configuration| {
        configuration.peer(&peer).expect("it was added").set_endpoint(address(number));
    });
}

/// Has a device send a keepalive to its only peer. Returns the datagram: the keepalive, or the initiation before it.
fn send(device: &mut Device, now: Now) -> Vec<u8> {
    let peer: PeerId = device.peers().next().expect("a peer").id;
    device.send_keepalive(now, peer);
    transmit(device, now)
}

fn transmit(device: &mut Device, now: Now) -> Vec<u8> {
    device.poll_transmit(now).expect("something to send").datagram.to_vec()
}

fn receive(device: &mut Device, now: Now, from: u8, mut keepalive: Vec<u8>) {
    assert_eq!(keepalive.len(), message::DATA_OVERHEAD);
    let opened = device.transport().open(now.monotonic, address(from).into(), &mut keepalive);
    let signal = opened.expect("an authentic message").signal;
    if let Some(signal) = signal {
        device.handle_signal(now, signal);
    }
}

/// The child process.
struct Devices {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Devices {
    fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().expect("the path of this program"))
            .args(["--exact", "no_secret_outlives_its_use_in_memory", "--nocapture", "--test-threads=1"])
            .env(IS_CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs again");
        let commands = process.stdin.take().expect("it is piped");
        let answers = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { process, commands, answers }
    }

    /// Has the child do something and returns its answer. When the child fails, its output ends.
    fn tell(&mut self, command: &str) -> Vec<u8> {
        writeln!(self.commands, "{command}").expect("the child reads");
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).expect("a line"), 0, "the child failed: {command}");
            // The test's own output may stand before the answer.
            if let Some((_, answer)) = line.trim_end().split_once('@') {
                return base16ct::lower::decode_vec(answer).expect("hex");
            }
        }
    }

    /// Asserts that the child's memory holds the secrets of the kinds that are in use, and no other.
    fn expect(&self, secrets: &Secrets, stage: &str, in_use: impl Fn(Kind) -> bool) {
        let found = secrets.search(self.process.id());
        for (secret, count) in iter::zip(&secrets.0, found) {
            let place = format!("{stage}: {}, found {count} times", secret.name);
            assert_eq!(count > 0, in_use(secret.kind), "{place}");
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How long a secret is in use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// While it is configured.
    Configured,
    /// Until the initiation.
    InitiatorsSeed,
    /// Until the response.
    RespondersSeed,
    /// From the first handshake with a peer on, while both keys are configured.
    StaticStatic,
    /// From the initiation to the response.
    Pending,
    /// While the session lives.
    Session,
    /// Within one call.
    Passing,
}

struct Secret {
    name: &'static str,
    kind: Kind,
    bytes: [u8; 32],
}

/// All secrets of a handshake.
struct Secrets(Vec<Secret>);

impl Secrets {
    /// Computes them as the paper does (section 5.4), from the keys, the seeds and the messages.
    fn of(initiation: &[u8], response: &[u8]) -> Self {
        let (alice, bob) = (unmask(&ALICE), unmask(&BOB));
        let public = |key| MontgomeryPoint::mul_base_clamped(key).to_bytes();
        let shared = |key, other| MontgomeryPoint(other).mul_clamped(key).to_bytes();
        let field = |message: &[u8], at| <[u8; 32]>::try_from(&message[at..at + 32]).expect("32 bytes");
        let (e_i, e_r) = (field(initiation, 8), field(response, 12));
        let (ephemeral_i, ephemeral_r) = (drawn(&ALICE_SEED, &e_i), drawn(&BOB_SEED, &e_r));

        let mut secrets = Vec::new();
        let mut add = |name, kind, bytes| secrets.push(Secret { name, kind, bytes });
        add("Alice's private key", Kind::Configured, alice);
        add("Bob's private key", Kind::Configured, bob);
        add("the preshared key", Kind::Configured, unmask(&PSK));
        add("the seed of Alice's ephemeral key", Kind::InitiatorsSeed, unmask(&ALICE_SEED));
        add("the seed of Bob's ephemeral key", Kind::RespondersSeed, unmask(&BOB_SEED));
        add("Alice's ephemeral key", Kind::Pending, ephemeral_i);
        add("Bob's ephemeral key", Kind::Passing, ephemeral_r);

        let (es, ss) = (shared(ephemeral_i, public(bob)), shared(alice, public(bob)));
        let (ee, se) = (shared(ephemeral_i, e_r), shared(alice, e_r));
        add("es", Kind::Passing, es);
        add("ss", Kind::StaticStatic, ss);
        add("ee", Kind::Passing, ee);
        add("se", Kind::Passing, se);

        let key = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
        let [key] = derive(key, &e_i);
        let [key, static_key] = derive(key, &es);
        add("the chaining key after es", Kind::Passing, key);
        add("the key of the static key", Kind::Passing, static_key);
        let [key, timestamp_key] = derive(key, &ss);
        add("the chaining key after ss", Kind::Pending, key);
        add("the key of the timestamp", Kind::Passing, timestamp_key);
        let [key] = derive(key, &e_r);
        add("the chaining key after Bob's ephemeral key", Kind::Passing, key);
        let [key] = derive(key, &ee);
        add("the chaining key after ee", Kind::Passing, key);
        let [key] = derive(key, &se);
        add("the chaining key after se", Kind::Passing, key);
        let [key, temporary, nothing_key] = derive(key, &unmask(&PSK));
        add("the chaining key after the preshared key", Kind::Passing, key);
        add("what the preshared key adds to the hash", Kind::Passing, temporary);
        add("the key of nothing", Kind::Passing, nothing_key);
        let [to_bob, to_alice] = derive(key, &[]);
        add("the transport key to Bob", Kind::Session, to_bob);
        add("the transport key to Alice", Kind::Session, to_alice);
        Self(secrets)
    }

    /// How often each is found in the writable memory of a process: half of it is enough, because registers of 16 bytes
    /// are saved one by one.
    fn search(&self, process: u32) -> Vec<usize> {
        let halves: Vec<[&[u8]; 2]> =
            self.0.iter().map(|secret| [&secret.bytes[1..15], &secret.bytes[17..31]]).collect();
        // The secrets' numbers by the first two bytes of a half, so that memory is passed once.
        let mut by_start = vec![Vec::new(); 1 << 16];
        for (number, halves) in halves.iter().enumerate() {
            for half in halves {
                by_start[usize::from(half[0]) << 8 | usize::from(half[1])].push((number, *half));
            }
        }
        let mut found = vec![0; self.0.len()];
        for memory in writable_memory(process) {
            for (at, start) in memory.windows(2).enumerate() {
                for (number, half) in &by_start[usize::from(start[0]) << 8 | usize::from(start[1])] {
                    found[*number] += usize::from(memory[at..].starts_with(half));
                }
            }
        }
        found
    }
}

/// What is mapped writable in a process, a mapping at a time.
fn writable_memory(process: u32) -> impl Iterator<Item = Vec<u8>> {
    let mut maps = String::new();
    let open = |name| File::open(format!("/proc/{process}/{name}")).expect("the child runs");
    open("maps").read_to_string(&mut maps).expect("its mappings");
    let mut memory = open("mem");
    let ranges: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|access| access.starts_with("rw")))
        .filter_map(|line| line.split(' ').next()?.split_once('-'))
        .map(|(from, to)| (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)))
        .map(|(from, to)| (from.expect("hex"), to.expect("hex")))
        .collect();
    assert!(!ranges.is_empty());
    ranges.into_iter().map(move |(from, to)| {
        let mut bytes = vec![0; (to - from) as usize];
        memory.seek(SeekFrom::Start(from)).expect("a place in memory");
        memory.read_exact(&mut bytes).expect("memory that is mapped");
        bytes
    })
}

/// The private key that a device drew for this public key. From each seed come a secret and the next seed.
fn drawn(masked_seed: &[u8; 32], public: &[u8; 32]) -> [u8; 32] {
    let mut seed = unmask(masked_seed);
    let mut secrets = iter::repeat_with(|| {
        let (mut stream, mut secret) = (ChaCha20Rng::from_seed(seed), [0; 32]);
        stream.fill_bytes(&mut secret);
        stream.fill_bytes(&mut seed);
        secret
    });
    let own = |key: &[u8; 32]| MontgomeryPoint::mul_base_clamped(*key).as_bytes() == public;
    secrets.by_ref().take(10).find(own).expect("ephemeral keys come from the seed")
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

fn hmac(key: [u8; 32], text: &[u8]) -> [u8; 32] {
    let pad = |with| key.into_iter().chain([0; 32]).map(|byte| byte ^ with).collect::<Vec<u8>>();
    hash(&[&pad(0x5c), &hash(&[&pad(0x36), text])])
}

fn derive<const N: usize>(key: [u8; 32], input: &[u8]) -> [[u8; 32]; N] {
    let secret = hmac(key, input);
    let mut last = Vec::new();
    std::array::from_fn(|number| {
        last.push(number as u8 + 1);
        let next = hmac(secret, &last);
        last = next.to_vec();
        next
    })
}

//! An imitation of Felix, Calico's node agent, as far as it concerns WireGuard over IPv4.
//!
//! ```text
//!  Keys (annotations of Nodes) ◀── own key ── Felix ──▶ wireguard.cali, table 1, rule 99
//!                              ── peers' ───▶   └─────▶ deletes others' rules and `throw` routes of table 1
//! ```
//!
//! What the real one does was seen with Calico 3.33 and read in felix/wireguard: it takes table 1 for its own whether
//! its WireGuard is on or off. At every refresh it deletes the rules that look that table up, and the routes in it that
//! have no interface, unless they are its own. When it starts with its WireGuard off it clears its node's key. With its
//! WireGuard on it writes its own key again when somebody changes it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use wireloom_plan::routing::Family;

use crate::{
    Lab, Node, Result, Space,
    control::{configure, hex},
    mesh::{KeyPair, PORT},
    network::layout::pod,
};

/// `wireguardInterfaceName`, `wireguardRoutingRulePriority`, the first table of `routeTableRanges` and the mark, by
/// default. The mark is the highest bit but one of `iptablesMarkMask`.
const INTERFACE: &str = "wireguard.cali";
const RULE: &str = "not from all fwmark 0x100000/0x100000 lookup 1";
const MARK: u32 = 0x10_0000;

/// The protocol of its routes: `deviceRouteProtocol`. (The default is 3, boot; another one tells them from those that
/// tests add.)
const PROTOCOL: u8 = 80;

/// How often it looks at the keys. The real one hears of them by a watch.
const LOOK: Duration = Duration::from_millis(50);

/// The last octet of the tunnel address that the IPAM gives to a node.
const TUNNEL_ADDRESS: u8 = 250;

/// The keys that nodes publish: the annotation `projectcalico.org/WireguardPublicKey` of each Node. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Keys(Arc<Mutex<BTreeMap<String, String>>>);

impl Keys {
    /// All keys in base64, by node.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes a node's key, or clears it.
    pub fn set(&self, node: &str, key: Option<&str>) {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match key {
            Some(key) => keys.insert(node.to_owned(), key.to_owned()),
            None => keys.remove(node),
        };
    }
}

/// A running Felix. It ends when this is dropped, and leaves what it programmed, as the real one does.
#[derive(Debug)]
pub struct Felix {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What it knows of a node of its cluster.
#[derive(Debug, Clone)]
struct Member {
    block: IpNet,
    endpoint: SocketAddr,
}

impl Felix {
    /// Starts it on a node of the laboratory (an index into [`Lab::nodes`]). It encrypts if it has a key pair. The
    /// program `wireloom` makes its device. `refresh` is `routeRefreshInterval`, 90 s by default.
    ///
    /// # Errors
    /// When its first pass fails.
    pub fn start(
        wireloom: &Path,
        lab: &Lab,
        node: usize,
        pair: Option<KeyPair>,
        refresh: Duration,
        keys: &Keys,
    ) -> Result<Self> {
        let member = |node: &Node| {
            let member = Member { block: node.block[0], endpoint: node.endpoint(Family::V4) };
            (node.name.clone(), member)
        };
        let node = &lab.nodes[node];
        let mut felix = Work {
            wireloom: wireloom.to_owned(),
            name: node.name.clone(),
            space: node.host.space.clone(),
            tunnel_address: pod(node.number, TUNNEL_ADDRESS).v4.to_string(),
            members: lab.nodes.iter().map(member).collect(),
            keys: keys.clone(),
            pair,
            peers: BTreeMap::new(),
            is_programmed: false,
        };
        felix.begin()?;
        felix.pass()?;
        felix.refresh()?;
        let over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let over = Arc::clone(&over);
            move || felix.run(refresh, &over)
        });
        Ok(Self { over, thread: Some(thread) })
    }

    /// Ends it.
    ///
    /// # Errors
    /// What it failed at.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("Felix does not panic"))
    }
}

impl Drop for Felix {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

struct Work {
    wireloom: PathBuf,
    name: String,
    space: Space,
    tunnel_address: String,
    members: BTreeMap<String, Member>,
    keys: Keys,
    pair: Option<KeyPair>,
    /// The peers' keys as they are programmed, by node.
    peers: BTreeMap<String, String>,
    is_programmed: bool,
}

impl Work {
    fn run(mut self, refresh: Duration, over: &AtomicBool) -> Result<()> {
        let mut due = Instant::now() + refresh;
        while !over.load(Ordering::Relaxed) {
            self.pass()?;
            if Instant::now() >= due {
                self.refresh()?;
                due = Instant::now() + refresh;
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What it does at its start: it makes its chains, and removes all of its WireGuard if that is off.
    fn begin(&mut self) -> Result<()> {
        self.space.feed("nft -f -", "table ip filter { chain cali-FORWARD { }; }\n")?;
        if self.pair.is_none() {
            self.keys.set(&self.name, None);
            if self.space.run(&format!("ip link show {INTERFACE}")).is_ok() {
                self.space.run(&format!("ip link del {INTERFACE}"))?;
            }
            self.space.run(&format!("ip route flush table 1 proto {PROTOCOL}"))?;
        }
        Ok(())
    }

    /// Publishes its key, and follows those of the others.
    fn pass(&mut self) -> Result<()> {
        let Some(pair) = self.pair.clone() else { return Ok(()) };
        let mut published = self.keys.all();
        if !self.is_programmed {
            self.make_device(&pair)?;
        }
        if published.remove(&self.name).as_ref() != Some(&pair.public) {
            self.keys.set(&self.name, Some(&pair.public));
        }
        published.retain(|name, _| self.members.contains_key(name));
        if published != self.peers {
            self.follow(published)?;
        }
        Ok(())
    }

    fn make_device(&mut self, pair: &KeyPair) -> Result<()> {
        self.space.run(&format!("{} device {INTERFACE}", self.wireloom.display()))?;
        let private = hex(&pair.private)?;
        configure(
            &self.space,
            INTERFACE,
            &format!("private_key={private}\nlisten_port={PORT}\nfwmark={MARK}\n"),
        )?;
        let mut batch = format!(
            "address add {}/32 dev {INTERFACE}\nlink set {INTERFACE} mtu 1440 up\n",
            self.tunnel_address
        );
        for member in self.members.values() {
            let _ = writeln!(batch, "route replace throw {} table 1 proto {PROTOCOL}", member.block);
        }
        let _ = writeln!(batch, "rule add pref 99 {RULE}");
        self.space.feed("ip -batch -", &batch)?;
        self.is_programmed = true;
        Ok(())
    }

    /// Traffic for a node without a key goes direct.
    fn follow(&mut self, published: BTreeMap<String, String>) -> Result<()> {
        let (mut device, mut direct, mut encrypted) = (String::new(), String::new(), String::new());
        for (name, member) in &self.members {
            let (before, now) = (self.peers.get(name), published.get(name));
            if before == now {
                continue;
            }
            if let Some(key) = before {
                let _ = writeln!(device, "public_key={}\nremove=true", hex(key)?);
            }
            let block = member.block;
            match now {
                Some(key) => {
                    let _ = write!(
                        device,
                        "public_key={}\nendpoint={}\nreplace_allowed_ips=true\nallowed_ip={block}\n",
                        hex(key)?,
                        member.endpoint
                    );
                    let _ =
                        writeln!(encrypted, "route replace {block} dev {INTERFACE} table 1 proto {PROTOCOL}");
                }
                None => {
                    let _ = writeln!(direct, "route replace throw {block} table 1 proto {PROTOCOL}");
                }
            }
        }
        // A route to a peer that the device does not have drops packets.
        self.space.feed("ip -batch -", &direct)?;
        configure(&self.space, INTERFACE, &device)?;
        self.space.feed("ip -batch -", &encrypted)?;
        self.peers = published;
        Ok(())
    }

    /// Deletes what it takes for leftovers of its own.
    fn refresh(&self) -> Result<()> {
        let mut batch = String::new();
        for rule in self.space.run("ip -4 rule show table 1")?.lines() {
            if let Some((priority, rule)) = rule.split_once(':')
                && !(self.is_programmed && rule.trim() == RULE)
            {
                let _ = writeln!(batch, "rule del pref {priority} {}", rule.trim());
            }
        }
        // A table without routes need not exist.
        let routes = self.space.run("ip -4 route show table 1 type throw").unwrap_or_default();
        let own = format!("proto {PROTOCOL}");
        for route in routes.lines().filter(|route| !route.contains(&own)) {
            let _ = writeln!(batch, "route del {} table 1", route.trim());
        }
        self.space.feed("ip -force -batch -", &batch).map(drop)
    }
}

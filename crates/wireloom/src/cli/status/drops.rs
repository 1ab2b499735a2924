//! What each of the device's reasons for dropping a packet means.

/// The meaning of a reason, as `get_drops` of the control socket names it (docs/control-socket.md); `None` for one that
/// a later device has.
pub(super) fn meaning(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "bad-length" | "bad-type" => "not WireGuard: another program sends to our port",
        "bad-mac1" => "the sender takes another key for this node's; compare `wireloom key public`",
        "cookie-required" => "under load: the sender must first show its address",
        "rate-limited" => "under load: one address sent too many handshakes",
        "no-private-key" => "the device has no private key yet",
        "unknown-index" => "for a session that is over, mostly after a restart of this device",
        "bad-ciphertext" => "forged or damaged on the way",
        "replayed" => "received twice (path MTU probes are), or far too late",
        "session-expired" => "for a session that is too old to be used",
        "stale-timestamp" => "an old handshake: the sender's clock went back, or two nodes have one key",
        "unknown-peer" => "a handshake of somebody whose key is not in this mesh",
        "initiation-flood" => "one peer began handshakes too often",
        "unexpected-cookie" => "an answer to nothing that was sent",
        "bad-inner-packet" => "what was inside is no IP packet",
        "source-not-allowed" => "a peer sent from an address that its record does not list",
        "no-peer-for-destination" => "sent into the interface for an address of no peer",
        "no-endpoint" => "for a peer whose endpoint is unknown",
        "queue-full" => "too many packets waited for a session",
        "forgotten" => "waiting when the interface went down, or their peer was removed",
        "handshake-timed-out" => "for a peer that did not answer",
        "not-sent" => "the network did not take it: no route, refused, or a full queue",
        "queue-stood" => "the interface's queue did not empty: its senders were too fast",
        "not-delivered" => "this machine did not take what came out of the tunnel",
        "not-ip" => "a frame on the link that carries no IP",
        "no-neighbour" => "for a link address of no peer",
        "peer-lost" => "for a peer that has stopped answering, or has no endpoint",
        "too-big" => "longer than the way to its peer takes; the sender was told",
        "not-for-the-link" => "a peer sent neighbour discovery, which is the device's own",
        "routing-loop" => "datagrams of the device that were routed into its own interface",
        "device-busy" => "a handshake or a multicast that came while too many others waited",
        "congested" => "marked as having met congestion on the way, which the packet inside cannot show",
        _ => return None,
    })
}

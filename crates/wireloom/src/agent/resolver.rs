//! The system's resolver, which may take many seconds: it has a thread of its own, which looks up one name at a time.
//! The agent's thread never waits for it.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use wireloom_plan::endpoint_name::EndpointName;

/// Addresses in the resolver's order of preference, or why there are none.
pub(super) type Found = Result<Vec<SocketAddr>, String>;

/// Starts the thread. It takes names until nobody can send any more, or until `answer` returns false: nobody hears it.
pub(super) fn start(answer: impl Fn(Found) -> bool + Send + 'static) -> io::Result<SyncSender<EndpointName>> {
    let (resolver, names) = sync_channel::<EndpointName>(1);
    thread::Builder::new()
        .name("resolver".into())
        .spawn(move || while names.recv().is_ok_and(|name| answer(look_up(&name))) {})?;
    Ok(resolver)
}

/// Blocks.
fn look_up(name: &EndpointName) -> Found {
    let found = (name.host(), name.port()).to_socket_addrs().map_err(|error| error.to_string())?;
    Ok(found.filter(|it| !it.ip().is_unspecified() && !it.ip().is_multicast()).collect())
}

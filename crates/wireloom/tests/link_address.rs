//! The plan names peers on a link, and the device answers for them. Neither knows the other, so each derives the
//! names by itself: here both are seen, and must agree.

use proptest::prelude::*;

proptest! {
    #[test]
    fn the_plan_and_the_device_call_a_peer_the_same(key in any::<[u8; 32]>()) {
        let planned = wireloom_plan::link_address::LinkAddress::of(wireloom_plan::key::PublicKey(key));
        let device = wireloom_engine::LinkAddress::of(&wireloom_engine::PublicKey::from_bytes(key));
        prop_assert_eq!(planned.0, device.to_bytes());
        prop_assert_eq!(planned.to_string(), device.to_string());
        prop_assert_eq!(planned.link_local(), device.link_local());
    }
}

//! The mesh's own tests once more, with peers as neighbours: whatever holds for a mesh holds on a link.
//!
//! No node declares an address on the link, so that all routes go by way of `fe80` addresses;
//! [`link_agent`](crate::link_agent) has nodes that do.

/// Each of these tests of another module, on a link.
macro_rules! on_a_link {
    ($($module:ident { $($test:ident)* })*) => {
        $(mod $module {
            $(#[test]
            fn $test() {
                crate::fleet::with_more_settings(super::LINK, crate::$module::$test);
            })*
        })*
    };
}

/// Sources are judged by the firewall, as they are unless the settings say otherwise.
const LINK: &str = "[link]\npeer_lookup = \"gateway\"\n";

on_a_link! {
    matrix {
        scoped_mode_encrypts_pod_to_pod_and_nothing_else
        scoped_mode_with_strict_source_validation_everywhere
        host_mode_encrypts_all_four_directions
        host_mode_with_strict_source_validation_everywhere
        both_modes_over_an_ipv6_underlay
        nothing_between_pods_is_readable_on_the_underlay
        nothing_between_nodes_is_readable_in_host_mode
        forwarded_traffic_from_outside_is_direct_in_scoped_mode
        node_port_traffic_is_direct_in_scoped_mode
        the_mode_is_switched_both_ways_on_the_live_mesh
    }
    rules {
        one_pool_makes_one_rule_for_each_family
        host_mode_makes_one_rule_for_each_family
        a_second_pass_changes_nothing
        rules_follow_the_pools_live
        node_scope_covers_this_node_s_blocks
        a_single_address_is_never_a_rule_and_warned_of_when_none_covers_it
        a_rule_that_someone_deleted_comes_back
    }
    membership {
        a_node_without_a_key_is_reached_in_plaintext
        a_node_without_a_key_is_refused_where_that_is_wanted
        nodes_with_one_key_are_both_left_out_and_reported
        a_changed_key_is_followed
        a_changed_endpoint_is_followed
        a_removed_node_leaves_no_trace
        a_borrowed_address_moves_between_nodes
    }
    upgrade {
        the_unscoped_rule_gives_way_and_the_scoped_one_comes_first
        an_unscoped_rule_at_another_priority_gives_way_too
        what_others_made_stays_to_the_byte
        a_foreign_route_in_our_table_is_reported_and_left
    }
    restart {
        sigterm_leaves_the_data_path_up
        kill_9_leaves_the_data_path_up
        kill_9_leaves_the_data_path_up_in_host_mode
        a_restarted_agent_catches_up
        a_killed_device_is_made_again
        down_leaves_the_machine_as_it_was
        down_works_with_broken_files
    }
}

//! The tests of [`agent`](crate::agent) once more, with peers as neighbours: whatever holds for a mesh holds on a
//! link.
//!
//! No node declares an address on the link here, so that all next hops are `fe80::` addresses;
//! [`agent`](super::agent) has nodes that declare some.

/// Runs each of these tests of [`agent`](crate::agent)'s modules on a link.
macro_rules! on_a_link {
    ($($module:ident { $($test:ident)* })*) => {
        $(mod $module {
            $(#[test]
            fn $test() {
                crate::fixtures::fleet::with_more_settings(super::LINK, crate::agent::$module::$test);
            })*
        })*
    };
}

/// The firewall checks sources: that is the default.
const LINK: &str = "[link]\npeer_lookup = \"gateway\"\n";

on_a_link! {
    matrix {
        scoped_mode_encrypts_pod_to_pod_and_nothing_else
        scoped_mode_works_with_strict_source_validation_everywhere
        host_mode_encrypts_all_four_directions
        host_mode_works_with_strict_source_validation_everywhere
        both_modes_work_over_an_ipv6_underlay
        nothing_between_pods_is_readable_on_the_underlay
        nothing_between_nodes_is_readable_in_host_mode
        forwarded_traffic_from_outside_is_direct_in_scoped_mode
        node_port_traffic_is_direct_in_scoped_mode
        switching_the_mode_on_the_live_mesh_loses_no_packet_between_pods
    }
    rules {
        one_pool_makes_one_rule_for_each_family
        host_mode_makes_one_rule_for_each_family
        a_second_pass_changes_nothing
        rules_follow_the_pools_live
        node_scope_makes_rules_of_this_nodes_blocks
        a_single_address_makes_no_rule_and_a_warning_when_no_rule_covers_it
        a_rule_that_someone_deleted_comes_back
    }
    membership {
        a_node_without_a_key_is_reached_in_plaintext
        a_node_without_a_key_is_not_reached_where_the_settings_reject_it
        nodes_with_one_key_are_both_left_out_and_reported
        a_changed_key_is_followed
        a_changed_endpoint_is_followed
        a_removed_node_leaves_no_trace
        a_borrowed_address_moves_between_nodes
    }
    upgrade {
        the_scoped_rule_comes_before_the_unscoped_one_goes
        an_unscoped_rule_at_another_priority_goes_too
        rules_routes_and_links_of_others_stay_as_they_are
    }
    ownership {
        a_rule_and_a_route_that_come_later_are_a_warning_and_stay
    }
    restart {
        an_agent_that_gets_sigterm_leaves_the_data_path_up
        an_agent_that_is_killed_leaves_the_data_path_up
        an_agent_that_is_killed_leaves_the_data_path_up_in_host_mode
        a_restarted_agent_catches_up_on_what_changed_without_it
        a_deleted_interface_is_made_again
        down_leaves_the_machine_as_it_was
        down_works_with_broken_files
    }
    survival {
        without_agent_and_device_nothing_leaves_in_plaintext_until_an_agent_returns
        a_device_that_ends_is_replaced_behind_the_same_interface
        down_removes_an_interface_that_outlived_its_device
    }
    instances {
        one_agent_takes_over_from_another_and_back_when_it_dies
        pods_take_over_with_their_engines_and_nobody_notices
    }
}

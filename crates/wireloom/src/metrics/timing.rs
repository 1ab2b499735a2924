//! How long a pass and its parts take.

use std::time::Duration;

use prometheus_client::{metrics::histogram::Histogram, registry::Registry};

/// Seconds, from a change of one node (a millisecond) to the first plan of thousands with a slow kernel.
const BOUNDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Histograms of what passes took.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    observe: Histogram,
    plan: Histogram,
    apply: Histogram,
}

impl Default for Timing {
    fn default() -> Self {
        let histogram = || Histogram::new(BOUNDS);
        Self { observe: histogram(), plan: histogram(), apply: histogram() }
    }
}

impl Timing {
    /// Takes what a pass took in all, and of that to read the kernel and to change it. A part that was not done is not
    /// counted.
    pub(crate) fn note(&self, pass: Duration, observed: Duration, applied: Duration) {
        let planned = pass.saturating_sub(observed + applied);
        for (histogram, took) in [(&self.observe, observed), (&self.plan, planned), (&self.apply, applied)] {
            if !took.is_zero() {
                histogram.observe(took.as_secs_f64());
            }
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let mut register = |name: &str, help: &str, histogram: &Histogram| {
            registry.register(name, help, histogram.clone());
        };
        register("wireloom_observe_seconds", "Time that a pass took to read the kernel", &self.observe);
        register("wireloom_plan_seconds", "Time that a pass took to plan", &self.plan);
        register("wireloom_apply_seconds", "Time that a pass took to change the kernel", &self.apply);
    }
}

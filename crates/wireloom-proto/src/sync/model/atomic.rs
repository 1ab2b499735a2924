//! Atomics. Each has those of std's methods that the crate uses.

use std::cell::Cell;
pub(crate) use std::sync::atomic::Ordering;

use super::is_running;

macro_rules! atomic {
    ($name:ident, $value:ty $(, $method:ident($operand:ident))*) => {
        #[derive(Debug)]
        pub(crate) enum $name {
            Real(std::sync::atomic::$name),
            Modelled(Modelled<loom::sync::atomic::$name>),
        }

        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                if is_running() {
                    Self::Modelled(Modelled::new(loom::sync::atomic::$name::new(value)))
                } else {
                    Self::Real(std::sync::atomic::$name::new(value))
                }
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                match self {
                    Self::Real(real) => real.load(order),
                    Self::Modelled(modelled) => read(order, || modelled.at().load(order)),
                }
            }

            $(pub(crate) fn $method(&self, $operand: $value, order: Ordering) -> $value {
                match self {
                    Self::Real(real) => real.$method($operand, order),
                    Self::Modelled(modelled) => {
                        read(order, || write(order, || modelled.at().$method($operand, order)))
                    }
                }
            })*
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new(<$value>::default())
            }
        }
    };
}

/// Adds the method of those that are not only exchanged.
macro_rules! stored {
    ($name:ident, $value:ty) => {
        impl $name {
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                match self {
                    Self::Real(real) => real.store(value, order),
                    // A swap: loom leaves open which of two threads' stores was the last one.
                    Self::Modelled(modelled) => write(order, || _ = modelled.at().swap(value, order)),
                }
            }
        }
    };
}

atomic!(AtomicBool, bool, swap(value));
atomic!(AtomicU8, u8, fetch_and(bits), fetch_or(bits));
atomic!(AtomicU16, u16);
atomic!(AtomicU64, u64, fetch_add(n), fetch_min(value));

stored!(AtomicBool, bool);
stored!(AtomicU16, u16);
stored!(AtomicU64, u64);

impl AtomicU64 {
    pub(crate) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        match self {
            Self::Real(real) => real.compare_exchange(current, new, success, failure),
            Self::Modelled(modelled) => read(success, || {
                write(success, || modelled.at().compare_exchange(current, new, success, failure))
            }),
        }
    }

    pub(crate) fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        match self {
            Self::Real(real) => real.fetch_update(success, failure, update),
            Self::Modelled(modelled) => {
                read(success, || write(success, || modelled.at().fetch_update(success, failure, update)))
            }
        }
    }
}

/// An atomic of loom's, and one more that makes loom's search complete.
///
/// To find out which other orders it must try, loom remembers one access of each kind for an atomic. So a thread that
/// loads before it writes makes loom forget the load of another thread, which that write is in conflict with. A relaxed
/// exchange of the second atomic, before each access of the first one, is in conflict with all others and orders
/// nothing.
#[derive(Debug)]
pub(crate) struct Modelled<A> {
    atomic: A,
    accesses: loom::sync::atomic::AtomicU8,
}

impl<A> Modelled<A> {
    pub(super) fn new(atomic: A) -> Self {
        Self { atomic, accesses: loom::sync::atomic::AtomicU8::new(0) }
    }

    /// The atomic, to be accessed once.
    pub(super) fn at(&self) -> &A {
        self.accesses.swap(0, Ordering::Relaxed);
        &self.atomic
    }
}

// Loom takes a sequentially consistent access for one that acquires and releases, which is weaker, and would report
// interleavings that cannot happen. It does know sequentially consistent fences. So here a fence stands between a
// write and a read that follows it in the same thread if both are sequentially consistent: only together do they keep
// their order, so a weaker one of the two is still found.
loom::thread_local! {
    /// Whether the thread's last write was sequentially consistent, and no fence has followed.
    static WRITTEN: Cell<bool> = Cell::new(false);
}

fn read<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
    if order == Ordering::SeqCst && WRITTEN.with(|written| written.replace(false)) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
    access()
}

fn write<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
    let result = access();
    WRITTEN.with(|written| written.set(order == Ordering::SeqCst));
    result
}

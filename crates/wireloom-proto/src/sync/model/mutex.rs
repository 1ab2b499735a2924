//! A mutex.

use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError};

use super::is_running;

#[derive(Debug)]
pub(crate) enum Mutex<T> {
    Real(std::sync::Mutex<T>),
    Modelled(loom::sync::Mutex<T>),
}

#[derive(Debug)]
pub(crate) enum MutexGuard<'a, T> {
    Real(std::sync::MutexGuard<'a, T>),
    Modelled(loom::sync::MutexGuard<'a, T>),
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        if is_running() {
            Self::Modelled(loom::sync::Mutex::new(value))
        } else {
            Self::Real(std::sync::Mutex::new(value))
        }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match self {
            Self::Real(real) => real
                .lock()
                .map(MutexGuard::Real)
                .map_err(|poisoned| PoisonError::new(MutexGuard::Real(poisoned.into_inner()))),
            Self::Modelled(modelled) => Ok(MutexGuard::Modelled(modelled.lock().expect("loom's never is"))),
        }
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Self::Real(real) => real,
            Self::Modelled(modelled) => modelled,
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match self {
            Self::Real(real) => real,
            Self::Modelled(modelled) => modelled,
        }
    }
}

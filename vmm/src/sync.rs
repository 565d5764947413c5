//! Locks that are never found poisoned.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. A panic ends the process, so no other thread finds the lock poisoned.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

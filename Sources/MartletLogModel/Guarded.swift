import CMartletPlatform
package import Synchronization

/// A value that is touched only with its lock held: a `Mutex` whose every taking the thread sanitizer sees.
///
/// A contended `Mutex` is handed over by the kernel (a futex with priority inheritance), unseen by the sanitizer, which
/// then takes whatever the lock protects for a race.
package struct Guarded<Value: ~Copyable>: ~Copyable {
    @usableFromInline let mutex: Mutex<Value>

    @inlinable package init(_ value: consuming sending Value) { mutex = Mutex(value) }

    @inlinable package borrowing func withLock<Result: ~Copyable, Failure>(
        _ body: (inout sending Value) throws(Failure) -> sending Result
    ) throws(Failure) -> sending Result {
        // SAFETY: the address is only compared, never followed.
        let address = unsafe withUnsafePointer(to: mutex) { unsafe UnsafeRawPointer($0) }
        return try mutex.withLock { value throws(Failure) in
            // SAFETY: as above.
            unsafe noteTaken(address)
            // SAFETY: as above.
            defer { unsafe noteGivenBack(address) }
            return try body(&value)
        }
    }
}

extension Guarded: Sendable where Value: ~Copyable {}

// SAFETY: the pointer is only compared.
@usableFromInline func noteTaken(_ lock: UnsafeRawPointer) { unsafe martlet_lock_taken(lock) }

// SAFETY: the pointer is only compared.
@usableFromInline func noteGivenBack(_ lock: UnsafeRawPointer) { unsafe martlet_lock_given_back(lock) }

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
        try mutex.withLock { value throws(Failure) in
            // SAFETY: the address, which is that of the value inside the mutex, is only compared, never followed.
            unsafe withUnsafePointer(to: &value) { unsafe noteTaken($0) }
            defer {
                // SAFETY: as above.
                unsafe withUnsafePointer(to: &value) { unsafe noteGivenBack($0) }
            }
            return try body(&value)
        }
    }
}

extension Guarded: Sendable where Value: ~Copyable {}

// SAFETY: the pointer is only compared.
@usableFromInline func noteTaken(_ lock: UnsafeRawPointer) { unsafe martlet_lock_taken(lock) }

// SAFETY: the pointer is only compared.
@usableFromInline func noteGivenBack(_ lock: UnsafeRawPointer) { unsafe martlet_lock_given_back(lock) }

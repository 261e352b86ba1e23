"""Where a store lies: a disk or a bucket, what is durable there, and who may write."""

package gateway

// maxrssUnit is what Rusage.Maxrss counts in, in bytes.
const maxrssUnit = 1 << 10

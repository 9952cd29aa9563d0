// SPDX-License-Identifier: Apache-2.0

// A Go program without cgo: allocates, sleeps and counts rounds for ever.
package main

import (
	"os"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	f, _ := os.OpenFile(os.Args[1], os.O_RDWR, 0)
	raw, _ := syscall.Mmap(int(f.Fd()), 0, 4096, 3, 1)
	page := (*[512]uint64)(unsafe.Pointer(&raw[0]))
	var sink [][]byte
	for i := 0; ; i++ {
		sink = append(sink[:i%64], make([]byte, 1000+i%5000))
		if i%1000 == 0 {
			time.Sleep(time.Millisecond)
			page[0]++
		}
	}
}

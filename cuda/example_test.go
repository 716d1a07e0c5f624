package cuda_test

import (
	"fmt"
	"log"

	"github.com/gomamba/mamba/cuda"
)

// Adds arrays on a GPU. Without a usable GPU, the error of Open says what is missing.
func Example() {
	device, err := cuda.Open(0)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer device.Close()
	stream, err := device.NewStream()
	if err != nil {
		log.Fatal(err)
	}
	a, err := cuda.Upload(stream, []float32{1, 2, 3})
	if err != nil {
		log.Fatal(err)
	}
	sum, err := cuda.NewArray[float32](stream, 3)
	if err != nil {
		log.Fatal(err)
	}
	if err := cuda.Add(stream, a, a, sum); err != nil { // queues the addition and does not wait
		log.Fatal(err)
	}
	host := make([]float32, 3)
	if err := sum.CopyTo(stream, host); err != nil { // waits for the result
		log.Fatal(err)
	}
	fmt.Println(host)
}

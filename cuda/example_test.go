package cuda_test

import (
	"fmt"
	"log"

	"github.com/gomamba/mamba/cuda"
)

// Arrays on a GPU. The error of Open says what is missing where there is none.
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
	if err := cuda.Add(stream, a, a, sum); err != nil { // queued, not waited for
		log.Fatal(err)
	}
	host := make([]float32, 3)
	if err := sum.CopyTo(stream, host); err != nil { // waits
		log.Fatal(err)
	}
	fmt.Println(host)
}

// Package report shows what a training run does: its progress on a terminal or in a log, and its curves as PNG files.
//
// It is a package of its own so that a program that only trains does not link a plotting library, fonts and a progress bar. Package
// train hands out plain numbers, a train.Curve, and this package shows them:
//
//	show := &report.Progress{Out: os.Stderr, Steps: 1000}
//	trainer, err := train.New(lm, train.Config{ /* ... */ Steps: 1000, Report: show.Update})
//	...
//	err = trainer.Run(ctx)
//	show.Finish()
//	err = report.WritePNG("loss.png", report.Loss{}.Panel(trainer.Curve()))
package report

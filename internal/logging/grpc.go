package logging

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/grpclog"
)

// routeGRPC replaces the logger that an upstream package has set in its init function: gRPC uses
// the logger that was set last.
func routeGRPC(handler slog.Handler) { grpclog.SetLoggerV2(grpcLog{handler}) }

// grpcLog is gRPC's logger. gRPC's info and warnings report each connection that ends, and become
// debug records. gRPC ends the process itself after a fatal record.
type grpcLog struct{ handler slog.Handler }

func (l grpcLog) log(level slog.Level, message string) {
	ctx := context.Background()
	if !l.handler.Enabled(ctx, level) {
		return
	}
	r := slog.NewRecord(time.Now(), level, strings.TrimSpace(message), 0)
	r.AddAttrs(slog.String("component", "grpc"))
	_ = l.handler.Handle(ctx, r) // slog's loggers drop this error too
}

func (l grpcLog) Info(args ...any)            { l.log(slog.LevelDebug, fmt.Sprint(args...)) }
func (l grpcLog) Infoln(args ...any)          { l.log(slog.LevelDebug, fmt.Sprintln(args...)) }
func (l grpcLog) Infof(f string, args ...any) { l.log(slog.LevelDebug, fmt.Sprintf(f, args...)) }

func (l grpcLog) Warning(args ...any)            { l.log(slog.LevelDebug, fmt.Sprint(args...)) }
func (l grpcLog) Warningln(args ...any)          { l.log(slog.LevelDebug, fmt.Sprintln(args...)) }
func (l grpcLog) Warningf(f string, args ...any) { l.log(slog.LevelDebug, fmt.Sprintf(f, args...)) }

func (l grpcLog) Error(args ...any)            { l.log(slog.LevelError, fmt.Sprint(args...)) }
func (l grpcLog) Errorln(args ...any)          { l.log(slog.LevelError, fmt.Sprintln(args...)) }
func (l grpcLog) Errorf(f string, args ...any) { l.log(slog.LevelError, fmt.Sprintf(f, args...)) }

func (l grpcLog) Fatal(args ...any)            { l.log(slog.LevelError, fmt.Sprint(args...)) }
func (l grpcLog) Fatalln(args ...any)          { l.log(slog.LevelError, fmt.Sprintln(args...)) }
func (l grpcLog) Fatalf(f string, args ...any) { l.log(slog.LevelError, fmt.Sprintf(f, args...)) }

// V implements grpclog.LoggerV2. Its callers log at info.
func (l grpcLog) V(int) bool { return l.handler.Enabled(context.Background(), slog.LevelDebug) }

package agent

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/disk"
)

// testImage is an image to build. A test damages the finished archive, if it needs a damaged one.
type testImage struct {
	name     string
	layers   [][]byte
	diffIDs  []digest.Digest // by default those of layers
	platform string          // by default this machine's
	index    bool            // the name leads to an index; it has a second platform whose blobs are missing
	without  int             // 1 and up: a layer whose blob is missing
}

func (im testImage) parts(t *testing.T) (blobs []file, manifest, target ocispec.Descriptor) {
	t.Helper()
	if im.platform == "" {
		im.platform = runtime.GOARCH
	}
	diffIDs := im.diffIDs
	var layers []ocispec.Descriptor
	for i, layer := range im.layers {
		mediaType := ocispec.MediaTypeImageLayer
		if bytes.HasPrefix(layer, []byte{0x1f, 0x8b}) {
			mediaType = ocispec.MediaTypeImageLayerGzip
		}
		layers = append(layers, descriptor(mediaType, layer))
		if im.diffIDs == nil {
			diffIDs = append(diffIDs, digest.FromBytes(layer))
		}
		if im.without != i+1 {
			blobs = append(blobs, blob(layer))
		}
	}
	platform := ocispec.Platform{OS: "linux", Architecture: im.platform}
	config := mustJSON(t, ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}})
	data := mustJSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "layers": layers,
		"config": descriptor(ocispec.MediaTypeImageConfig, config),
	})
	manifest = descriptor(ocispec.MediaTypeImageManifest, data)
	manifest.Platform = &platform
	blobs = append(blobs, blob(config), blob(data))
	if !im.index {
		return blobs, manifest, manifest
	}
	other := descriptor(ocispec.MediaTypeImageManifest, []byte("not here"))
	other.Platform = &ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	data = mustJSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{other, manifest},
	})
	return append(blobs, blob(data)), manifest, descriptor(ocispec.MediaTypeImageIndex, data)
}

// oci returns an OCI layout with the image.
func (im testImage) oci(t *testing.T) []byte {
	t.Helper()
	blobs, _, target := im.parts(t)
	target.Annotations = map[string]string{"io.containerd.image.name": im.name}
	return mustTar(t, append(blobs,
		file{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		file{"index.json", 0o644, mustJSON(t, map[string]any{"schemaVersion": 2, "manifests": []any{target}})})...)
}

// docker returns an archive in the format that docker save wrote for a long time.
func (im testImage) docker(t *testing.T) []byte {
	t.Helper()
	blobs, _, _ := im.parts(t)
	var layers []string
	for _, layer := range im.layers {
		layers = append(layers, blob(layer).name)
	}
	return mustTar(t, append(blobs, file{"manifest.json", 0o644, mustJSON(t, []any{map[string]any{
		"Config": blobs[len(blobs)-2].name, "RepoTags": []string{im.name}, "Layers": layers,
	}})})...)
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	require.NoError(t, err)
	return data
}

func mustTar(t *testing.T, files ...file) []byte {
	t.Helper()
	data, err := tarOf(files...)
	require.NoError(t, err)
	return data
}

func layerOf(t *testing.T, name, text string) []byte {
	return mustTar(t, file{name, 0o644, []byte(text)})
}

// linkLayer returns a layer with a hard link to a file of another layer.
func linkLayer(t *testing.T, name, target string) []byte {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}))
	require.NoError(t, w.Close())
	return buffer.Bytes()
}

// storeState returns everything that an import could leave behind.
func storeState(t *testing.T, s *ImageStore) map[string]string {
	t.Helper()
	ctx := t.Context()
	state := map[string]string{}
	list, err := s.client.ImageService().List(ctx)
	require.NoError(t, err)
	for _, image := range list {
		state["image "+image.Name] = fmt.Sprint(image.Target.Digest, image.Labels)
	}
	require.NoError(t, s.client.ContentStore().Walk(ctx, func(info content.Info) error {
		state["blob "+info.Digest.String()] = fmt.Sprint(info.Size)
		return nil
	}))
	ingests, err := s.client.ContentStore().ListStatuses(ctx)
	require.NoError(t, err)
	for _, ingest := range ingests {
		state["ingest "+ingest.Ref] = fmt.Sprint(ingest.Offset)
	}
	leases, err := s.client.LeasesService().List(ctx)
	require.NoError(t, err)
	for _, lease := range leases {
		state["lease "+lease.ID] = fmt.Sprint(lease.Labels)
	}
	require.NoError(t, s.client.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		state["snapshot "+info.Name] = info.Parent
		return nil
	}))
	return state
}

// collect makes containerd collect garbage that nothing waits for, such as the index of an archive.
func collect(t *testing.T, s *ImageStore) {
	t.Helper()
	_, release, err := s.lease(t.Context())
	require.NoError(t, err)
	require.NoError(t, release(true))
}

// settled waits until containerd and CRI have finished the work that follows from the last call.
func settled(t *testing.T, s *ImageStore, want map[string]string, what string) {
	t.Helper()
	var have map[string]string
	ok := func() bool {
		have = storeState(t, s)
		return maps.Equal(want, have)
	}
	for deadline := time.Now().Add(time.Minute); !ok() && time.Now().Before(deadline); {
		<-time.After(20 * time.Millisecond)
	}
	require.Equal(t, want, have, what)
}

// known returns the ID under which CRI, and so the kubelet, finds a name, or "" if it does not find
// it.
func known(t *testing.T, s *ImageStore, name string) string {
	t.Helper()
	image, err := s.lookUp(t.Context(), name)
	require.NoError(t, err)
	if image == nil {
		return ""
	}
	return image.Id
}

// TestImages runs the image verbs against a real containerd on a private host.
func TestImages(t *testing.T) {
	payload := testPayload(t)
	if inPrivateHost(t) {
		return
	}
	config := testConfig(payload)
	node := startTestNode(t)
	defer func() {
		require.NoError(t, node.Process.Kill())
		_ = node.Wait()
	}()
	store, err := OpenImages(ContainerdSocket(config))
	require.NoError(t, err)
	defer store.Close()
	for _, c := range []struct {
		name string
		test func(*testing.T, *ImageStore)
	}{
		{"digests", testImageDigests},
		{"failures", testImportFailures},
		{"full disk", testImportSpace},
		{"killed", testImportKilled},
		{"pins", testImagePins},
		{"tags and archives", testImageTags},
		{"directory", testImageDirectory},
		{"pulls", testImagePulls},
	} {
		if !t.Run(c.name, func(t *testing.T) { c.test(t, store) }) {
			return
		}
	}
}

func testImageDigests(t *testing.T, s *ImageStore) {
	for kind, im := range map[string]testImage{
		"manifest": {name: "registry.example/one:1", layers: [][]byte{layerOf(t, "a", "1")}},
		"index":    {name: "registry.example/many:1", layers: [][]byte{layerOf(t, "a", "2")}, index: true},
		"short":    {name: "docker.io/library/short:latest", layers: [][]byte{layerOf(t, "a", "3")}},
	} {
		_, manifest, target := im.parts(t)
		names, err := s.Import(t.Context(), bytes.NewReader(im.oci(t)), ImportOptions{})
		require.NoError(t, err, kind)
		require.Equal(t, []string{im.name}, names, kind)
		repository := im.name[:strings.LastIndex(im.name, ":")]
		id := known(t, s, im.name)
		require.NotEmpty(t, id, kind)
		for _, ref := range []string{
			repository + "@" + target.Digest.String(), im.name + "@" + target.Digest.String(),
			repository + "@" + manifest.Digest.String(), im.name + "@" + manifest.Digest.String(),
		} {
			require.Equal(t, id, known(t, s, ref), ref)
		}
	}
	docker := testImage{name: "old/docker:1", layers: [][]byte{layerOf(t, "a", "4")}}
	names, err := s.Import(t.Context(), bytes.NewReader(docker.docker(t)), ImportOptions{})
	require.NoError(t, err)
	require.Equal(t, []string{"docker.io/old/docker:1"}, names)
	image, err := s.resolve(t.Context(), "old/docker:1")
	require.NoError(t, err)
	require.NotEmpty(t, known(t, s, "old/docker@"+image.Target.Digest.String()))
	removed, err := s.Prune(t.Context(), true)
	require.NoError(t, err)
	require.Len(t, removed, 4)
}

// testImportFailures checks that a failed import leaves the store as it was: with a new name, and
// with a name that existed before.
func testImportFailures(t *testing.T, s *ImageStore) {
	const name = "t/app:1"
	lower := layerOf(t, "file", "text")
	good := testImage{name: name, layers: [][]byte{lower}}
	whole := good.oci(t)
	upper := layerOf(t, "other", "text")
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	_, err := zip.Write(whole)
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	spoilt := bytes.Clone(testImage{name: name, layers: [][]byte{lower, upper}}.oci(t))
	spoilt[bytes.Index(spoilt, []byte("other"))] = 'O' // inside the layer: the blob has another digest
	failures := func(t *testing.T) {
		collect(t, s)
		before := storeState(t, s)
		for what, c := range map[string]struct {
			archive []byte
			want    string
		}{
			"wrong diff id":  {testImage{name: name, layers: [][]byte{lower, upper}, diffIDs: []digest.Digest{digest.FromBytes(lower), digest.FromString("x")}}.oci(t), "unpack image docker.io/t/app:1: "},
			"missing blob":   {testImage{name: name, layers: [][]byte{lower, upper}, without: 2}.oci(t), "is missing in the archive, or its content has another digest"},
			"wrong digest":   {spoilt, "is missing in the archive, or its content has another digest"},
			"dangling link":  {testImage{name: name, layers: [][]byte{lower, linkLayer(t, "l", "nothing")}}.oci(t), "unpack image docker.io/t/app:1: "},
			"other machine":  {testImage{name: name, layers: [][]byte{upper}, platform: "s390x"}.oci(t), "image docker.io/t/app:1 is for linux/s390x, and this machine is linux/" + runtime.GOARCH},
			"cut short":      {whole[:len(whole)-1024-400], "the archive is cut short; copy it again"},
			"cut short gzip": {zipped.Bytes()[:zipped.Len()-20], "the archive is cut short; copy it again"},
			"no name":        {testImage{layers: [][]byte{upper}}.oci(t), "the archive names no image"},
			"no image":       {lower, "it has neither manifest.json nor oci-layout, or is cut short"},
			"text":           {[]byte("hello\n"), "not an image archive"},
			"empty":          {nil, "is empty"},
			"interrupted":    {nil, "canceled"},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			from := io.Reader(bytes.NewReader(c.archive))
			if what == "interrupted" {
				from = io.MultiReader(bytes.NewReader(whole[:len(whole)-1024-400]), readerFunc(func([]byte) (int, error) {
					cancel()
					return 0, ctx.Err()
				}))
			}
			_, err := s.Import(ctx, from, ImportOptions{Pin: true})
			cancel()
			require.ErrorContains(t, err, c.want, what)
			settled(t, s, before, what)
		}
	}
	t.Run("new name", failures)
	_, err = s.Import(t.Context(), bytes.NewReader(whole), ImportOptions{})
	require.NoError(t, err)
	id := known(t, s, name)
	t.Run("old name", failures)
	require.Equal(t, id, known(t, s, name))
	require.NoError(t, s.Remove(t.Context(), name, false))
	require.Empty(t, known(t, s, name))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// testImportSpace imports a small archive that unpacks to more than the disk may lose.
func testImportSpace(t *testing.T, s *ImageStore) {
	seen, err := publishedSpace(t.Context(), s.client, "/proc/1/root"+s.socket)
	require.NoError(t, err)
	require.Equal(t, "/proc/1/root/var/lib/mote/agent/containerd", seen.root, "from another mount namespace")
	was, err := publishedSpace(t.Context(), s.client, s.socket)
	require.NoError(t, err)
	defer func() { require.NoError(t, was.publish(t.Context(), s.client)) }()
	require.NotZero(t, was.bytes)
	on, err := disk.Of(was.root)
	require.NoError(t, err)

	const bomb = 512 << 20
	var layer bytes.Buffer
	w, err := gzip.NewWriterLevel(&layer, gzip.BestSpeed)
	require.NoError(t, err)
	diffID := digest.Canonical.Digester()
	entries := tar.NewWriter(io.MultiWriter(w, diffID.Hash()))
	require.NoError(t, entries.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: bomb}))
	_, err = io.CopyN(entries, readerFunc(func(p []byte) (int, error) { clear(p); return len(p), nil }), bomb)
	require.NoError(t, err)
	require.NoError(t, entries.Close())
	require.NoError(t, w.Close())
	archive := testImage{name: "t/bomb:1", layers: [][]byte{layer.Bytes()}, diffIDs: []digest.Digest{diffID.Digest()}}.oci(t)

	collect(t, s)
	before := storeState(t, s)
	tight := was
	tight.bytes = on.Free - 64<<20
	require.NoError(t, tight.publish(t.Context(), s.client))
	_, err = s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
	require.ErrorContains(t, err, "the image is too large for the disk of "+was.root+": mote keeps ")
	settled(t, s, before, "bomb")
	require.NoError(t, was.publish(t.Context(), s.client))
	_, err = s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{})
	require.NoError(t, err, "there is room for it")
	list, err := s.List(t.Context())
	require.NoError(t, err)
	i := slices.IndexFunc(list, func(i Image) bool { return i.Name == "docker.io/t/bomb:1" })
	require.GreaterOrEqual(t, list[i].Disk, int64(bomb))
	require.Less(t, list[i].Size, int64(bomb/8))
	require.NoError(t, s.Remove(t.Context(), "t/bomb:1", false))
	settled(t, s, before, "rm")
}

// testImportKilled kills a process in the middle of an import. The node must clean up.
func testImportKilled(t *testing.T, s *ImageStore) {
	collect(t, s)
	before := storeState(t, s)
	whole := testImage{name: "t/killed:1", layers: [][]byte{layerOf(t, "f", "killed")}}.oci(t)
	importer := exec.Command("/proc/self/exe")
	importer.Env = append(os.Environ(), roleVariable+"="+roleImporter)
	in, err := importer.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, importer.Start())
	_, err = in.Write(whole[:len(whole)-1024-400])
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !maps.Equal(before, storeState(t, s)) }, time.Minute, 10*time.Millisecond)
	free, err := s.Sweep(t.Context())
	require.NoError(t, err)
	require.False(t, free, "an import is under way")
	require.NoError(t, importer.Process.Kill())
	_ = importer.Wait()
	settled(t, s, before, "killed")
}

func testImagePins(t *testing.T, s *ImageStore) {
	const name = "docker.io/t/loop:dev"
	build := func(text string, o ImportOptions) (id, digested string) {
		im := testImage{name: name, layers: [][]byte{layerOf(t, "f", text)}}
		_, err := s.Import(t.Context(), bytes.NewReader(im.oci(t)), o)
		require.NoError(t, err)
		_, manifest, _ := im.parts(t)
		return known(t, s, name), "docker.io/t/loop@" + manifest.Digest.String()
	}
	pinned := func(id string) bool {
		image, err := s.lookUp(t.Context(), id)
		require.NoError(t, err)
		require.NotNil(t, image)
		return image.Pinned
	}
	eventually := func(what string, ok func() bool) {
		require.Eventually(t, ok, time.Minute, 10*time.Millisecond, what)
	}
	collect(t, s)
	before := storeState(t, s)
	first, firstName := build("1", ImportOptions{})
	require.False(t, pinned(first))
	_, err := s.Pin(t.Context(), "t/loop:dev")
	require.NoError(t, err)
	eventually("pin", func() bool { return pinned(first) })
	second, _ := build("2", ImportOptions{})
	require.NotEqual(t, first, second)
	require.Equal(t, first, known(t, s, firstName), "pods of the former build go on")
	eventually("the pin moves with the name", func() bool { return pinned(second) && !pinned(first) })
	removed, err := s.Prune(t.Context(), false)
	require.NoError(t, err)
	require.Equal(t, []string{firstName}, removed)
	require.Empty(t, known(t, s, firstName))
	removed, err = s.Prune(t.Context(), true)
	require.NoError(t, err)
	require.Empty(t, removed, "pinned")
	require.ErrorContains(t, s.Remove(t.Context(), "t/loop:dev", false), `docker.io/t/loop:dev is pinned; run "mote image unpin docker.io/t/loop:dev" first`)
	_, err = s.Unpin(t.Context(), "t/loop:dev")
	require.NoError(t, err)
	eventually("unpin", func() bool { return !pinned(second) })
	// The kubelet's garbage collection makes this call.
	_, err = s.cri.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: second}})
	require.NoError(t, err)
	settled(t, s, before, "collected")
	third, _ := build("3", ImportOptions{Pin: true})
	require.True(t, pinned(third))
	require.NoError(t, s.Remove(t.Context(), "t/loop:dev", true))
	require.ErrorContains(t, s.Remove(t.Context(), PauseImage, true), "every pod needs it")
	require.ErrorContains(t, s.Remove(t.Context(), "t/none", false), "no image t/none")
	settled(t, s, before, "rm")
}

func testImageTags(t *testing.T, s *ImageStore) {
	collect(t, s)
	before := storeState(t, s)
	im := testImage{name: "docker.io/t/app:1", layers: [][]byte{layerOf(t, "f", "tags")}, index: true}
	_, err := s.Import(t.Context(), bytes.NewReader(im.oci(t)), ImportOptions{})
	require.NoError(t, err)
	id := known(t, s, "t/app:1")
	tagged, err := s.Tag(t.Context(), "t/app:1", "registry.example/x:2")
	require.NoError(t, err)
	require.Equal(t, "registry.example/x:2", tagged)
	_, _, target := im.parts(t)
	require.Equal(t, id, known(t, s, "registry.example/x@"+target.Digest.String()))
	_, err = s.Tag(t.Context(), "t/app:1", "registry.example/x@"+target.Digest.String())
	require.ErrorContains(t, err, "use a tag")
	_, err = s.Tag(t.Context(), "t/none", "t/x")
	require.ErrorContains(t, err, "no image t/none")

	var archive bytes.Buffer
	require.NoError(t, s.Save(t.Context(), &archive, []string{"t/app:1", "registry.example/x:2"}))
	var entries []string
	for r := tar.NewReader(bytes.NewReader(archive.Bytes())); ; {
		entry, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		entries = append(entries, entry.Name)
	}
	require.Subset(t, entries, []string{"manifest.json", "oci-layout", "index.json"}, "docker load reads the first")
	require.NoError(t, s.Remove(t.Context(), "t/app:1", false))
	require.Equal(t, id, known(t, s, "registry.example/x:2"), "another tag keeps the image")
	list, err := s.List(t.Context())
	require.NoError(t, err)
	names := make([]string, len(list))
	for i, image := range list {
		names[i] = image.Name
	}
	require.Equal(t, []string{PauseImage, "registry.example/x:2"}, names)
	require.NoError(t, s.Remove(t.Context(), "registry.example/x:2", false))
	settled(t, s, before, "rm")
	back, err := s.Import(t.Context(), &archive, ImportOptions{})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"docker.io/t/app:1", "registry.example/x:2"}, back)
	require.Equal(t, id, known(t, s, "registry.example/x:2"))
	require.NoError(t, s.Remove(t.Context(), id, false))
	settled(t, s, before, "rm by id")
}

// testImageDirectory changes archives in the image directory, which the node watches.
func testImageDirectory(t *testing.T, s *ImageStore) {
	dir := testConfig("/p").ImagesDir
	im := testImage{name: "docker.io/t/dir:1", layers: [][]byte{layerOf(t, "f", "directory")}}
	put := func(name string, data []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	pinned := func() bool {
		image, err := s.lookUp(t.Context(), im.name)
		require.NoError(t, err)
		return image != nil && image.Pinned
	}
	put(".hidden.tar", im.oci(t))
	put("one.tar.part", im.oci(t))
	put("notes.txt", []byte("no archive"))
	put("app", im.oci(t)) // the content decides, not the name
	require.Eventually(t, pinned, time.Minute, 20*time.Millisecond)
	image, err := s.resolve(t.Context(), im.name)
	require.NoError(t, err)
	require.Equal(t, "app", image.Labels[directoryPinLabel])
	_, err = s.Unpin(t.Context(), im.name)
	require.ErrorContains(t, err, "is pinned by app in the image directory; remove that file")
	put("twin.tgz", im.docker(t))
	require.NoError(t, os.Remove(filepath.Join(dir, "app")))
	require.Eventually(t, func() bool {
		image, err := s.resolve(t.Context(), im.name)
		return err == nil && image.Labels[directoryPinLabel] == "twin.tgz" && pinned()
	}, time.Minute, 20*time.Millisecond, "the other archive holds it")
	require.NoError(t, os.Remove(filepath.Join(dir, "twin.tgz")))
	require.Eventually(t, func() bool { return !pinned() }, time.Minute, 20*time.Millisecond)
	require.NotEmpty(t, known(t, s, im.name), "unpinned, not removed")
	require.NoError(t, s.Remove(t.Context(), im.name, false))
}

// testImagePulls asks for images as the kubelet does, on a host without a network.
func testImagePulls(t *testing.T, s *ImageStore) {
	pulls, err := OpenImages(pullSocket(testConfig("/p")))
	require.NoError(t, err)
	defer pulls.Close()
	pull := func(name string) (string, error) {
		answer, err := pulls.cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		return answer.GetImageRef(), err
	}
	im := testImage{name: "docker.io/t/pull:latest", layers: [][]byte{layerOf(t, "f", "pull")}}
	_, err = pull("t/pull")
	require.ErrorContains(t, err, "without a network, import the image")
	_, err = s.Import(t.Context(), bytes.NewReader(im.oci(t)), ImportOptions{})
	require.NoError(t, err)
	_, manifest, _ := im.parts(t)
	for _, name := range []string{"t/pull", "t/pull:latest", "docker.io/t/pull@" + manifest.Digest.String()} {
		id, err := pull(name)
		require.NoError(t, err, name)
		require.Equal(t, known(t, s, "t/pull"), id, name)
	}
	id, pinned := s.imported(t.Context(), "t/pull")
	require.NotEmpty(t, id)
	require.False(t, pinned)
	_, err = s.Pin(t.Context(), "t/pull")
	require.NoError(t, err)
	_, pinned = s.imported(t.Context(), "t/pull")
	require.True(t, pinned, "the registry is not asked")
	// This is the state after a pull that gave the tag to another image.
	require.NoError(t, s.setLabels(t.Context(), im.name, map[string]string{importedLabel: digest.FromString("other").String()}))
	id, _ = s.imported(t.Context(), "t/pull")
	require.Empty(t, id)
	status, err := pulls.cri.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: im.name}})
	require.NoError(t, err)
	require.NotNil(t, status.Image)
	list, err := pulls.cri.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	require.NoError(t, err)
	require.Len(t, list.Images, 2)
	fs, err := pulls.cri.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	require.NoError(t, err)
	require.NotEmpty(t, fs.ImageFilesystems)
	_, err = pulls.cri.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: im.name}})
	require.NoError(t, err)
	require.False(t, s.has(t.Context(), im.name))
}

func TestSilentRegistries(t *testing.T) {
	var troubles component.Troubles
	r := newSilentRegistries(&troubles)
	now := time.Now()
	r.now = func() time.Time { return now }
	none := func(string) bool { return false }
	lost := status.Error(codes.Unknown, `failed to do request: Head "https://ghcr.io/v2/": dial tcp: lookup ghcr.io on [::1]:53: read: connection refused`)
	require.True(t, noAnswer(lost))
	require.False(t, noAnswer(status.Error(codes.NotFound, "ghcr.io/a/b:1: not found")))
	require.True(t, noAnswer(status.Error(codes.Unknown, `failed to resolve image: failed to do request: Head "https://ghcr.io/v2/a/b/manifests/1": Bad Gateway`)), "a proxy that cannot reach it")
	require.False(t, noAnswer(status.Error(codes.Unknown, `unexpected status from HEAD request to https://ghcr.io/v2/a/b/manifests/1: 502 Bad Gateway`)))
	require.False(t, noAnswer(status.Error(codes.Unknown, `failed to do request: Head "https://ghcr.io/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority`)))
	r.silent("ghcr.io/a/b:1", lost)
	r.silent("busybox", lost)
	require.Equal(t, []string{
		`registry docker.io: does not answer, and pods wait for busybox; import it with "mote image import FILE", or repair the network`,
		`registry ghcr.io: does not answer, and pods wait for ghcr.io/a/b:1; import it with "mote image import FILE", or repair the network`,
	}, troubles.Trouble())
	r.answered("docker.io/library/nginx:1")
	require.Len(t, troubles.Trouble(), 1)
	require.True(t, r.expire(none))
	require.False(t, r.expire(func(image string) bool { return image == "ghcr.io/a/b:1" }), "it was imported")
	require.Empty(t, troubles.Trouble())
	r.silent("ghcr.io/a/b:1", lost)
	now = now.Add(silenceMemory + time.Second)
	require.False(t, r.expire(none), "no pod asks for it any more")
	require.Empty(t, troubles.Trouble())
}

func TestOpenArchive(t *testing.T) {
	dir := t.TempDir()
	path := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, data, 0o600))
		return p
	}
	im := testImage{name: "a:1", layers: [][]byte{layerOf(t, "f", "x")}}
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	_, err := zip.Write(im.docker(t))
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	for p, want := range map[string]string{
		path("oci", im.oci(t)):                     "",
		path("docker.anything", im.docker(t)):      "",
		path("zipped.tgz", zipped.Bytes()):         "",
		filepath.Join(dir, "nothere.tar"):          "no such file",
		"https://example.com/app.tar":              "no such file; mote downloads no archives: run \"curl -fLO https://example.com/app.tar\" and import the file",
		path("text.tar", []byte("hello, world\n")): "not an image archive (docker save or OCI layout; plain, gzip or zstd)",
		path("empty.tar", nil):                     "is empty: not an image archive",
		dir:                                        "is a directory; pack an OCI layout with \"tar -C DIRECTORY -cf app.tar .\" and import app.tar",
		path("files.tar", layerOf(t, "f", "x")):    "not an image archive (docker save or OCI layout; plain, gzip or zstd): it has neither manifest.json nor oci-layout, or is cut short",
		"/dev/null":                                "not a regular file",
	} {
		err := CheckArchive(p)
		if want == "" {
			require.NoError(t, err, p)
		} else {
			require.EqualError(t, err, want, p)
		}
	}
	f, err := OpenArchive(filepath.Join(dir, "oci"))
	require.NoError(t, err)
	defer f.Close()
	at, err := f.Seek(0, io.SeekCurrent)
	require.NoError(t, err)
	require.Zero(t, at, "it is read from its beginning")
}

func TestSpace(t *testing.T) {
	config := testConfig("/p")
	config.DataDir = t.TempDir()
	config.KubeletArgs = []string{"evictionHard={imagefs.available: 1Gi, imagefs.inodesFree: 100}"}
	keep, err := keepFree(config)
	require.NoError(t, err)
	require.EqualValues(t, 1<<30, keep.bytes)
	require.EqualValues(t, 100, keep.inodes)

	now := disk.Info{Size: 10 << 30, Free: 2 << 30, Inodes: 10000, FreeInodes: 5000}
	keep.look = func(string) (disk.Info, error) { return now, nil }
	first := now
	require.NoError(t, keep.check(first))
	now.Free = 1<<30 - 1
	require.ErrorContains(t, keep.check(first), "mote keeps 1.0 GiB of it free for pods, and 1024.0 MiB are left")
	require.NoError(t, keep.check(now), "too full before, and nothing more taken")
	now = first
	now.FreeInodes = 99
	require.ErrorContains(t, keep.check(first), "too many files for the disk of "+keep.root)
}

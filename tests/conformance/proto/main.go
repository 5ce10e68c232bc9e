// Prints, as JSON, what the wire contracts compiled into the Go modules say: each message's fields, each enum's
// values, each service's methods. The Rust test beside `proto` compares this with the project's own `.proto` text.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/reflect/protoreflect"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type field struct {
	Name     string `json:"name"`
	Number   int32  `json:"number"`
	Kind     string `json:"kind"`
	Type     string `json:"type"`
	Repeated bool   `json:"repeated"`
	Oneof    string `json:"oneof"`
}

type contract struct {
	Messages map[string][]field          `json:"messages"`
	Enums    map[string]map[string]int32 `json:"enums"`
	Methods  map[string]string           `json:"methods"`
}

func main() {
	all := map[string]contract{}
	for _, file := range []protoreflect.FileDescriptor{cri.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto, csi.File_csi_proto, registration.File_staging_src_k8s_io_kubelet_pkg_apis_pluginregistration_v1_api_proto} {
		c := contract{map[string][]field{}, map[string]map[string]int32{}, map[string]string{}}
		messages(file.Messages(), c)
		enums(file.Enums(), c)
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				c.Methods[string(m.FullName())] = fmt.Sprintf("(%s%s) (%s%s)", stream(m.IsStreamingClient()), m.Input().FullName(), stream(m.IsStreamingServer()), m.Output().FullName())
			}
		}
		all[string(file.Package())] = c
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func stream(is bool) string {
	if is {
		return "stream "
	}
	return ""
}

func messages(list protoreflect.MessageDescriptors, c contract) {
	for i := range list.Len() {
		m := list.Get(i)
		fields := []field{}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			oneof := ""
			if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
				oneof = string(o.Name())
			}
			kind, name := f.Kind().String(), ""
			if f.IsMap() {
				kind = "map"
				name = f.MapKey().Kind().String() + "," + typeName(f.MapValue())
			} else if f.Message() != nil || f.Enum() != nil {
				name = typeName(f)
			}
			fields = append(fields, field{string(f.Name()), int32(f.Number()), kind, name, f.IsList(), oneof})
		}
		c.Messages[string(m.FullName())] = fields
		messages(m.Messages(), c)
		enums(m.Enums(), c)
	}
}

func typeName(f protoreflect.FieldDescriptor) string {
	switch {
	case f.Message() != nil:
		return string(f.Message().FullName())
	case f.Enum() != nil:
		return string(f.Enum().FullName())
	default:
		return f.Kind().String()
	}
}

func enums(list protoreflect.EnumDescriptors, c contract) {
	for i := range list.Len() {
		e := list.Get(i)
		values := map[string]int32{}
		for j := range e.Values().Len() {
			values[string(e.Values().Get(j).Name())] = int32(e.Values().Get(j).Number())
		}
		c.Enums[string(e.FullName())] = values
	}
}
